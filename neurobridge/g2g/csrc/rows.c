// A few inputs through a sparse linear layer, forward and backward in one pass over the weights each,
// and masks of weights. Explained in nbs/g2g/14_few_inputs.ipynb. A layer is `blocks` blocks of m rows
// and k columns; a masked one is one block. A mask is packed: a word of 16 bits per 16 columns of a
// row. Set when compiling: STORE, the type in memory (float; or uint16_t, the upper half of one, with
// BF16). Arithmetic is in float.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#elif defined __SSE2__
#include <emmintrin.h>
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, ROWS = 4 };
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t bits __attribute__((vector_size(64)));
typedef STORE raw __attribute__((vector_size(LANES * sizeof(STORE))));

typedef struct {
  ptrdiff_t inputs, n_in, n_out, blocks, m, k;
} sizes;
INLINE ptrdiff_t words(ptrdiff_t k) { return (k + LANES - 1) / LANES; }

// == Numbers ==

#ifdef BF16
INLINE float widen(STORE a) {
  uint32_t b = (uint32_t)a << 16;
  float f;
  memcpy(&f, &b, 4);
  return f;
}
INLINE STORE narrow(float f) {
  uint32_t b;
  memcpy(&b, &f, 4);
  return f != f ? 0x7fc0 : (b + 0x7fff + ((b >> 16) & 1)) >> 16;
}
INLINE vec wide(raw r) { return (vec)(__builtin_convertvector(r, bits) << 16); }
INLINE raw thin(vec v) {
  bits b = (bits)v, rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16, nan = (bits)(v != v);
  return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), raw);
}
#else
INLINE float widen(STORE a) { return a; }
INLINE STORE narrow(float f) { return f; }
INLINE vec wide(raw r) { return r; }
INLINE raw thin(vec v) { return v; }
#endif

INLINE vec load(const STORE *p) {
  raw r;
  memcpy(&r, p, sizeof r);
  return wide(r);
}
INLINE void store(STORE *p, vec v) {
  raw r = thin(v);
  memcpy(p, &r, sizeof r);
}
INLINE vec floats(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
// the numbers whose bits are set
INLINE vec alive(vec v, uint16_t on) {
#ifdef __AVX512F__
  return (vec)_mm512_maskz_mov_ps(on, (__m512)v);
#else
  const ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return (vec)((ints)v & -(((ints){0} + on) >> lane & 1));
#endif
}
INLINE int is_on(const uint16_t *row, ptrdiff_t j) { return row[j / LANES] >> j % LANES & 1; }

INLINE float sum(vec v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float part[LANES];
  memcpy(part, &v, sizeof v);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
#endif
}

// == Collect ==

// whether all of these are places in a row of so many
static int inside(const int64_t *at, ptrdiff_t count, ptrdiff_t end) {
  int good = 1;
  for (ptrdiff_t i = 0; at && i < count; i++) good &= at[i] >= 0 && at[i] < end;
  return good;
}
static int sound(const int64_t *sources, const int64_t *place, sizes s) {
  return inside(sources, s.blocks * s.k, s.n_in) && inside(place, s.n_out, s.blocks * s.m);
}

// x [inputs, n_in] as [blocks, inputs, k] floats
static void collect(const STORE *x, const int64_t *sources, float *to, sizes s) {
  for (ptrdiff_t g = 0; g < s.blocks; g++)
    for (ptrdiff_t n = 0; n < s.inputs; n++, to += s.k) {
      const STORE *from = x + n * s.n_in;
      const int64_t *at = sources + g * s.k;
      if (sources)
        for (ptrdiff_t j = 0; j < s.k; j++) to[j] = widen(from[at[j]]);
      else
        for (ptrdiff_t j = 0; j < s.k; j++) to[j] = widen(from[j]);
    }
}

// == Forward ==

// ROWS rows of weights with C inputs: the products' sums
INLINE void dots(const STORE *w, const uint16_t *mask, const float *x, ptrdiff_t k, int rows, int C,
                 float out[ROWS][4]) {
  vec acc[ROWS][4];
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < C; c++) acc[r][c] = (vec){0};
  ptrdiff_t j = 0;
  for (; j + LANES <= k; j += LANES) {
    vec in[4];
    for (int c = 0; c < C; c++) in[c] = floats(x + c * k + j);
    for (int r = 0; r < rows; r++) {
      vec v = load(w + r * k + j);
      if (mask) v = alive(v, mask[r * words(k) + j / LANES]);
      for (int c = 0; c < C; c++) acc[r][c] += v * in[c];
    }
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < C; c++) {
      float total = sum(acc[r][c]);
      for (ptrdiff_t i = j; i < k; i++)
        if (!mask || is_on(mask + r * words(k), i)) total += widen(w[r * k + i]) * x[c * k + i];
      out[r][c] = total;
    }
}

INLINE void rows_forward(const STORE *w, const uint16_t *mask, const float *x, const STORE *bias,
                         float *y, ptrdiff_t rows_all, ptrdiff_t at, int rows, sizes s) {
  float out[ROWS][4];
  for (ptrdiff_t n = 0; n < s.inputs;) {
    int c = s.inputs - n >= 4 ? 4 : s.inputs - n >= 2 ? 2 : 1;
    if (rows == ROWS) {
      if (c == 4) dots(w, mask, x + n * s.k, s.k, ROWS, 4, out);
      else if (c == 2) dots(w, mask, x + n * s.k, s.k, ROWS, 2, out);
      else dots(w, mask, x + n * s.k, s.k, ROWS, 1, out);
    } else
      for (int r = 0; r < rows; r++)
        for (int i = 0; i < c; i++) {
          float one[ROWS][4];
          dots(w + r * s.k, mask ? mask + r * words(s.k) : 0, x + (n + i) * s.k, s.k, 1, 1, one);
          out[r][i] = one[0][0];
        }
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < c; i++)
        y[(n + i) * rows_all + at + r] = out[r][i] + (bias ? widen(bias[at + r]) : 0);
    n += c;
  }
}

// 0; 1 where there is no memory, 2 where a source or a place lies outside
int forward(const STORE *x, const STORE *w, const uint16_t *mask, const int64_t *sources,
            const STORE *bias, const int64_t *place, STORE *y, sizes s, int threads) {
  ptrdiff_t all = s.blocks * s.m, quads = (s.m + ROWS - 1) / ROWS;
  if (!sound(sources, place, s)) return 2;
  float *in = malloc(s.blocks * s.inputs * s.k * sizeof(float));
  float *out = malloc(s.inputs * all * sizeof(float));
  if (!in || !out) return free(in), free(out), 1;
  collect(x, sources, in, s);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (ptrdiff_t q = 0; q < s.blocks * quads; q++) {
    ptrdiff_t g = q / quads, row = q % quads * ROWS, at = g * s.m + row;
    const float *xs = in + g * s.inputs * s.k;
    const uint16_t *on = mask ? mask + at * words(s.k) : 0;
    int rows = s.m - row < ROWS ? s.m - row : ROWS;
    if (on) rows_forward(w + at * s.k, on, xs, bias, out, all, at, rows, s);
    else rows_forward(w + at * s.k, 0, xs, bias, out, all, at, rows, s);
  }
  for (ptrdiff_t n = 0; n < s.inputs; n++)
    for (ptrdiff_t o = 0; o < s.n_out; o++)
      y[n * s.n_out + o] = narrow(out[n * all + (place ? place[o] : o)]);
  free(in), free(out);
  return 0;
}

// == Backward ==

// columns [j, end) of these rows' gradient, and what they add to the inputs'
INLINE void tile(const STORE *w, const uint16_t *mask, const float *x, const float *g,
                 ptrdiff_t all, STORE *gw, float *gx, int rows, ptrdiff_t j, ptrdiff_t end,
                 sizes s) {
  ptrdiff_t k = s.k;
  for (; j + LANES <= end; j += LANES) {
    vec acc[ROWS], v[ROWS];
    for (int r = 0; r < rows; r++) {
      acc[r] = v[r] = (vec){0};
      if (gx) v[r] = load(w + r * k + j);
      if (gx && mask) v[r] = alive(v[r], mask[r * words(k) + j / LANES]);
    }
    for (ptrdiff_t n = 0; n < s.inputs; n++) {
      vec in = floats(x + n * k + j), add = (vec){0};
      for (int r = 0; r < rows; r++) {
        acc[r] += g[n * all + r] * in;
        add += g[n * all + r] * v[r];
      }
      if (gx) {
        add += floats(gx + n * k + j);
        memcpy(gx + n * k + j, &add, sizeof add);
      }
    }
    if (gw)
      for (int r = 0; r < rows; r++)
        store(gw + r * k + j, mask ? alive(acc[r], mask[r * words(k) + j / LANES]) : acc[r]);
  }
  for (; j < end; j++)
    for (int r = 0; r < rows; r++) {
      int on = !mask || is_on(mask + r * words(k), j);
      float total = 0, value = on ? widen(w[r * k + j]) : 0;
      for (ptrdiff_t n = 0; n < s.inputs; n++) {
        total += g[n * all + r] * x[n * k + j];
        if (gx) gx[n * k + j] += g[n * all + r] * value;
      }
      if (gw) gw[r * k + j] = narrow(on ? total : 0);
    }
}

// so many columns that the inputs' part stays in the first cache
INLINE ptrdiff_t breadth(sizes s) {
  ptrdiff_t fit = 8192 / s.inputs / LANES * LANES;
  return fit < 256 ? 256 : fit;
}

static void block_backward(const STORE *w, const uint16_t *mask, const float *in, const float *g,
                           STORE *gw, float *add, ptrdiff_t b, ptrdiff_t part, sizes s) {
  ptrdiff_t all = s.blocks * s.m, j = part * breadth(s), end = j + breadth(s);
  if (end > s.k) end = s.k;
  in += b * s.inputs * s.k;
  if (add) add += b * s.inputs * s.k;
  for (ptrdiff_t row = 0; row < s.m;) {
    ptrdiff_t at = b * s.m + row, rows = s.m - row < ROWS ? 1 : ROWS;
    const uint16_t *on = mask ? mask + at * words(s.k) : 0;
    STORE *to = gw ? gw + at * s.k : 0;
    if (rows == 1) tile(w + at * s.k, on, in, g + at, all, to, add, 1, j, end, s);
    else if (on) tile(w + at * s.k, on, in, g + at, all, to, add, ROWS, j, end, s);
    else tile(w + at * s.k, 0, in, g + at, all, to, add, ROWS, j, end, s);
    row += rows;
  }
}

int backward(const STORE *x, const STORE *w, const uint16_t *mask, const int64_t *sources,
             const int64_t *place, const STORE *gy, STORE *gx, STORE *gw, STORE *gb, sizes s,
             int threads) {
  ptrdiff_t all = s.blocks * s.m, width = s.inputs * s.k;
  ptrdiff_t parts = (s.k + breadth(s) - 1) / breadth(s);
  if (!sound(sources, place, s)) return 2;
  float *in = malloc(s.blocks * width * sizeof(float));
  float *g = calloc(s.inputs * all, sizeof(float));
  float *add = gx ? calloc(s.blocks * width, sizeof(float)) : 0;
  float *back = gx ? calloc(s.inputs * s.n_in, sizeof(float)) : 0;
  if (!in || !g || (gx && (!add || !back))) return free(in), free(g), free(add), free(back), 1;
  collect(x, sources, in, s);
  for (ptrdiff_t n = 0; n < s.inputs; n++)
    for (ptrdiff_t o = 0; o < s.n_out; o++)
      g[n * all + (place ? place[o] : o)] += widen(gy[n * s.n_out + o]);
  for (ptrdiff_t o = 0; gb && o < all; o++) {
    float total = 0;
    for (ptrdiff_t n = 0; n < s.inputs; n++) total += g[n * all + o];
    gb[o] = narrow(total);
  }
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (ptrdiff_t p = 0; p < s.blocks * parts; p++)
    block_backward(w, mask, in, g, gw, add, p / parts, p % parts, s);
  if (gx) {
    for (ptrdiff_t b = 0; b < s.blocks; b++)
      for (ptrdiff_t n = 0; n < s.inputs; n++)
        for (ptrdiff_t j = 0; j < s.k; j++)
          back[n * s.n_in + (sources ? sources[b * s.k + j] : j)] +=
              add[b * width + n * s.k + j];
    for (ptrdiff_t i = 0; i < s.inputs * s.n_in; i++) gx[i] = narrow(back[i]);
  }
  free(in), free(g), free(add), free(back);
  return 0;
}

// == Masks ==

#ifdef BF16
typedef int16_t whole;
#else
typedef int32_t whole;
#endif
typedef whole wholes __attribute__((vector_size(LANES * sizeof(whole))));

INLINE wholes spread(uint16_t on) {
  const wholes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return -((((wholes){0} + (whole)on) >> lane) & 1);
}
INLINE wholes kept(wholes v, uint16_t on) {
#if defined(__AVX512F__) && !defined(BF16)
  return (wholes)_mm512_maskz_mov_epi32(on, (__m512i)v);
#elif defined(__AVX512BW__) && defined(__AVX512VL__) && defined(BF16)
  return (wholes)_mm256_maskz_mov_epi16(on, (__m256i)v);
#else
  return v & spread(on);
#endif
}

// the bits of sixteen bytes, whatever is not 0 as 1
INLINE uint16_t packed(const uint8_t *from) {
#ifdef __SSE2__
  __m128i v = _mm_loadu_si128((const __m128i *)from);
  return (uint16_t)~_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_setzero_si128()));
#else
  int on = 0;
  for (int i = 0; i < LANES; i++) on |= (from[i] != 0) << i;
  return (uint16_t)on;
#endif
}

void pack(const uint8_t *mask, uint16_t *to, ptrdiff_t rows, ptrdiff_t k) {
  for (ptrdiff_t r = 0; r < rows; r++, mask += k, to += words(k)) {
    ptrdiff_t w = 0;
    for (; (w + 1) * LANES <= k; w++) to[w] = packed(mask + w * LANES);
    if (w < words(k)) {
      uint8_t rest[LANES] = {0};
      memcpy(rest, mask + w * LANES, k - w * LANES);
      to[w] = packed(rest);
    }
  }
}

// whether a dead weight of these rows is not zero
int dead_moved(const STORE *w, const uint16_t *mask, ptrdiff_t rows, ptrdiff_t k) {
  wholes any = {0};
  int found = 0;
  for (ptrdiff_t r = 0; r < rows; r++, w += k, mask += words(k)) {
    ptrdiff_t j = 0;
    for (; j + LANES <= k; j += LANES) {
      wholes v;
      memcpy(&v, w + j, sizeof v);
      any |= v ^ kept(v, mask[j / LANES]);
    }
    for (; j < k; j++) found |= !is_on(mask, j) && widen(w[j]) != 0;
  }
  any += any;  // no sign: -0 is 0
  for (int l = 0; l < LANES; l++) found |= any[l] != 0;
  return found;
}

// zero the dead numbers of these rows
void clear_dead(STORE *w, const uint16_t *mask, ptrdiff_t rows, ptrdiff_t k) {
  for (ptrdiff_t r = 0; r < rows; r++, w += k, mask += words(k)) {
    ptrdiff_t j = 0;
    for (; j + LANES <= k; j += LANES) {
      wholes v;
      memcpy(&v, w + j, sizeof v);
      v = kept(v, mask[j / LANES]);
      memcpy(w + j, &v, sizeof v);
    }
    for (; j < k; j++)
      if (!is_on(mask, j)) w[j] = 0;
  }
}
