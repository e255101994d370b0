// Leaky integrate-and-fire neurons over a whole sequence: forward and backward pass.
// Explained in nbs/snn/kernels/02_cpu.ipynb. Set when compiling: REAL, the type of the arithmetic
// (float or double), STORE, the type in memory, and BF16 where STORE is the upper half of a float.

// == Vectors ==

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif
#define INLINE static inline __attribute__((always_inline))

// bytes of a register: wider vectors would be compared number by number
#if defined(__AVX512F__)
enum { REGISTER = 64 };
#elif defined(__AVX__)
enum { REGISTER = 32 };
#else
enum { REGISTER = 16 };
#endif

// loops go by registers; blocks and sums go by cache lines, so that they are the same everywhere
enum { LANES = REGISTER / sizeof(REAL), LINE = 64 / sizeof(REAL), BLOCK = 1024 };
typedef REAL vec __attribute__((vector_size(REGISTER)));  // LANES numbers
typedef __typeof__((vec){0} > (vec){0}) mask;       // LANES integers: all bits set where true
typedef STORE raw __attribute__((vector_size(LANES * sizeof(STORE))));

INLINE vec all(REAL a) { return (vec){0} + a; }
INLINE vec pick(mask m, vec a, vec b) { return (vec)((m & (mask)a) | (~m & (mask)b)); }
INLINE vec one_where(mask m) { return (vec)(m & (mask)all(1)); }
INLINE vec magnitude(vec a) { return pick(a < all(0), -a, a); }

// == Load and store ==

#ifdef BF16
typedef uint32_t bits __attribute__((vector_size(REGISTER)));
INLINE vec widen(raw r) { return (vec)(__builtin_convertvector(r, bits) << 16); }

INLINE raw narrow(vec v) {
  bits b = (bits)v, rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16, nan = (bits)(v != v);
  return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), raw);
}
#else
INLINE vec widen(raw r) { return r; }
INLINE raw narrow(vec v) { return v; }
#endif

INLINE vec load(const STORE *p) {
  raw r;
  memcpy(&r, p, sizeof r);
  return widen(r);
}

// write past the cache; neighbours fill a cache line together
INLINE void stream_out(void *p, raw r) {
#if defined(__AVX512F__) && !defined(BF16)
  _mm512_stream_si512((__m512i *)p, (__m512i)r);
#elif defined(__AVX__) && !defined(BF16)
  _mm256_stream_si256((__m256i *)p, (__m256i)r);
#else
  memcpy(p, &r, sizeof r);
#endif
}

// streamed lines become visible to the other threads
INLINE void drain(int stream) {
#ifdef __AVX__
  if (stream) _mm_sfence();
#else
  (void)stream;
#endif
}

INLINE void store(STORE *p, vec v, int stream) {
  raw r = narrow(v);
  if (stream)
    stream_out(p, r);
  else
    memcpy(p, &r, sizeof r);
}

// == The neuron ==

// the membrane after the spike
INLINE vec reset(vec h, vec v_th, int hard) {
  vec s = one_where(h > v_th);
  return hard ? h * (all(1) - s) : h - v_th * s;
}

// a row of n numbers: one each, or one for all
INLINE void start(vec *to, const REAL *from, int each, ptrdiff_t n) {
  if (from && each)
    memcpy(to, from, n * sizeof(REAL));
  else
    for (ptrdiff_t k = 0; k < n / LANES; k++) to[k] = all(from ? *from : 0);
}

// is any of n numbers NaN or infinite?
INLINE int unsound(const vec *v, ptrdiff_t n) {
  mask bad = all(0) != all(0);
  int any = 0;
  for (ptrdiff_t k = 0; k < n / LANES; k++) bad |= (v[k] - v[k]) != all(0);
  for (int k = 0; k < LANES; k++) any |= bad[k] != 0;
  return any;
}

typedef struct {
  double threshold, a, b;
  int hard, spikes, detach, kind;
} settings;

// == Blocks ==

INLINE ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t whole(ptrdiff_t n) { return (n + LINE - 1) / LINE * LINE; }

INLINE ptrdiff_t block_size(ptrdiff_t M, ptrdiff_t T, int threads) {
  ptrdiff_t n = smaller(BLOCK, smaller(whole(65536 / T), whole((M + threads - 1) / threads)));
  return smaller(n < 4 * LINE ? 4 * LINE : n, M / LINE * LINE);  // at most M neurons
}

// == Forward ==

// the threshold of LANES neurons: from a row, or the one of all where th is NULL
INLINE vec threshold_of(const vec *th, ptrdiff_t k, settings s) {
  return th ? th[k] : all(s.threshold);
}

INLINE void forward_row(const STORE *x, const STORE *next, const vec *d, const vec *th, vec *v,
                        STORE *out, ptrdiff_t n, settings s, int stream) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec h = d[k] * v[k] + load(x + k * LANES), v_th = threshold_of(th, k, s);
    store(out + k * LANES, s.spikes ? one_where(h > v_th) : h, stream);
    v[k] = reset(h, v_th, s.hard);
  }
}

// with one threshold for all: not inlined, so that the rows of thresholds cost it no registers
static __attribute__((noinline)) void forward_row_one(const STORE *x, const STORE *next,
                                                      const vec *d, vec *v, STORE *out,
                                                      ptrdiff_t n, settings s, int stream) {
  forward_row(x, next, d, NULL, v, out, n, s, stream);
}

int forward(const STORE *x, ptrdiff_t x_step, const REAL *decay, int per_neuron,
            const REAL *threshold, const REAL *v0, STORE *out, REAL *v_last, ptrdiff_t T,
            ptrdiff_t M, settings s, int stream, int threads) {
  ptrdiff_t block = block_size(M, T, threads), blocks = M ? (M + block - 1) / block : 0;
  int bad = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(|: bad)
  for (ptrdiff_t i = 0; i < blocks; i++) {
    vec v[BLOCK / LANES], d[BLOCK / LANES], th[BLOCK / LANES];
    ptrdiff_t n = smaller(block, whole(M - i * block)), first = smaller(i * block, M - n);
    start(v, v0 ? v0 + first : NULL, 1, n);
    start(d, per_neuron ? decay + first : decay, per_neuron, n);
    if (threshold) start(th, threshold + first, 1, n);
    for (ptrdiff_t t = 0; t < T; t++) {
      const STORE *xt = x + t * x_step + first, *next = t + 1 < T ? xt + x_step : x + first + n;
      if (threshold)
        forward_row(xt, next, d, th, v, out + t * M + first, n, s, stream);
      else
        forward_row_one(xt, next, d, v, out + t * M + first, n, s, stream);
    }
    bad |= unsound(v, n);
    drain(stream);
    if (v_last) memcpy(v_last + first, v, n * sizeof(REAL));
  }
  return bad;
}

// == Surrogate derivatives ==

// e^x
INLINE vec power(vec x) {
  if (sizeof(REAL) == 8) {
    for (int k = 0; k < LANES; k++) x[k] = exp(x[k]);
    return x;
  }
  x = pick(x < all(-87), all(-87), pick(x > all(88), all(88), x));
  vec magic = all(12582912);  // 1.5 * 2^23: adding it rounds to an integer
  vec n = (x * all(1.44269504f) + magic) - magic;
  vec r = (x - n * all(0.693359375f)) - n * all(-2.12194440e-4f);
  vec p = all(1.9875691500e-4f) * r + all(1.3981999507e-3f);
  p = p * r + all(8.3334519073e-3f);
  p = p * r + all(4.1665795894e-2f);
  p = p * r + all(1.6666665459e-1f);
  p = p * r + all(5.0000001201e-1f);
  mask exponent = (__builtin_convertvector(n, mask) + 127) << 23;
  return (p * r * r + r + all(1)) * (vec)exponent;
}

enum { RECTANGLE, TRIANGLE, ATAN, SIGMOID, FAST_SIGMOID, GAUSSIAN };

// surrogate derivative ds/du; a, b: its constants
INLINE vec surrogate(vec u, int kind, double a, double b) {
  const double pi = 3.14159265358979323846;
  switch (kind) {
    case RECTANGLE: return one_where(magnitude(u) < all(a / 2)) / all(a);
    case TRIANGLE: {
      vec w = all(a) - magnitude(u);
      return pick(w > all(0), w, all(0)) / all(a * a);
    }
    case ATAN: {
      vec z = all(pi / 2 * a) * u;
      return all(1) / (all(1) + z * z) * all(a / 2);
    }
    case SIGMOID: {
      vec s = all(1) / (all(1) + power(-(all(a) * u)));
      return all(a) * s * (all(1) - s);
    }
    case FAST_SIGMOID: {
      vec z = all(1) + all(a) * magnitude(u);
      return all(a / 2) / (z * z);
    }
    default: {
      vec z = (u - all(b)) / all(a);
      return power(z * z / all(-2)) / all(a * sqrt(2 * pi));
    }
  }
}

// == Backward, one step ==

INLINE void replay_row(const STORE *x, const STORE *next, const vec *d, const vec *th, vec *v,
                       vec *history, ptrdiff_t n, settings s) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec h = history[k] = d[k] * v[k] + load(x + k * LANES);
    v[k] = reset(h, threshold_of(th, k, s), s.hard);
  }
}

// dL/dh[t] from dL/dout[t] and dL/dv[t]: through the membrane that stays, and through the spike
// where gth is not NULL, dL/d(threshold) of this step is added to it
INLINE vec adjoint_at(vec h, vec g, vec gv, vec v_th, vec *gth, settings s) {
  vec kept = s.hard ? gv * (all(1) - one_where(h > v_th)) : gv;
  if (gth && !s.hard) *gth -= gv * one_where(h > v_th);
  if (s.spikes || !s.detach) {
    vec gs = s.spikes ? g : all(0);
    if (!s.detach) gs -= gv * (s.hard ? h : v_th);
    vec through = gs * surrogate(h - v_th, s.kind, s.a, s.b);
    kept += through;
    if (gth) *gth -= through;
  }
  return s.spikes ? kept : kept + g;
}

INLINE vec adjoint(vec h, vec g, vec gv, settings s) {
  return adjoint_at(h, g, gv, all(s.threshold), NULL, s);
}

INLINE void adjoint_row(const STORE *g, const STORE *next, const vec *d, const vec *th, vec *gv,
                        vec *gth, vec *h, STORE *gx, ptrdiff_t n, settings s, int keep,
                        int stream) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec gh = adjoint_at(h[k], load(g + k * LANES), gv[k], threshold_of(th, k, s),
                        gth ? gth + k : NULL, s);
    store(gx + k * LANES, gh, stream);
    gv[k] = gh * d[k];
    if (keep) h[k] = gh;
  }
}

// == Backward, one block ==

static void decay_row(const vec *gh, const vec *before, const vec *v0, const vec *th, vec *gd,
                      ptrdiff_t n, settings s) {
  for (ptrdiff_t k = 0; k < n / LANES; k++)
    gd[k] += gh[k] * (before ? reset(before[k], threshold_of(th, k, s), s.hard) : v0[k]);
}

INLINE void backward_block(const STORE *x, ptrdiff_t x_step, const STORE *g, ptrdiff_t g_step,
                           const vec *d, const vec *th, vec *v, vec *gv, vec *gd, vec *gth, vec *h,
                           STORE *gx, ptrdiff_t gx_step, ptrdiff_t T, ptrdiff_t n, settings s,
                           int stream) {
  ptrdiff_t row = n / LANES;
  vec *v0 = h + T * row;  // a last row of the history: the state it started from
  memcpy(v0, v, n * sizeof(REAL));
  for (ptrdiff_t t = 0; t < T; t++)
    replay_row(x + t * x_step, t + 1 < T ? x + (t + 1) * x_step : g + t * g_step, d, th, v,
               h + t * row, n, s);
  for (ptrdiff_t t = T - 1; t >= 0; t--) {
    adjoint_row(g + t * g_step, t ? g + (t - 1) * g_step : x + n, d, th, gv, gth, h + t * row,
                gx + t * gx_step, n, s, gd != NULL, stream);
    if (gd) decay_row(h + t * row, t ? h + (t - 1) * row : NULL, v0, th, gd, n, s);
  }
}

// as forward_row_one
static __attribute__((noinline)) void backward_block_one(
    const STORE *x, ptrdiff_t x_step, const STORE *g, ptrdiff_t g_step, const vec *d, vec *v,
    vec *gv, vec *gd, vec *h, STORE *gx, ptrdiff_t gx_step, ptrdiff_t T, ptrdiff_t n, settings s,
    int stream) {
  backward_block(x, x_step, g, g_step, d, NULL, v, gv, gd, NULL, h, gx, gx_step, T, n, s, stream);
}

// == Backward ==

int backward(const STORE *x, ptrdiff_t x_step, const STORE *g, ptrdiff_t g_step, const REAL *decay,
             int per_neuron, const REAL *threshold, const REAL *v0, const REAL *g_last, STORE *gx,
             REAL *g_decay, REAL *g_v0, REAL *g_threshold, ptrdiff_t T, ptrdiff_t M, settings s,
             int stream, int threads) {
  ptrdiff_t block = block_size(M, T, threads), blocks = M ? (M + block - 1) / block : 0,
            row = block / LANES;
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(|: failed)
  {
    vec *d = aligned_alloc(64, ((T + 7) * block + LINE) * sizeof(REAL));
    vec *v = d + row, *gv = d + 2 * row, *gd = g_decay ? d + 3 * row : NULL, *th = d + 4 * row,
        *gth = d + 5 * row, *history = d + 6 * row;
    failed |= d == NULL;
#pragma omp for schedule(dynamic, 4)
    for (ptrdiff_t i = 0; i < blocks; i++) {
      if (failed) continue;
      ptrdiff_t n = smaller(block, whole(M - i * block)), first = smaller(i * block, M - n);
      start(d, per_neuron ? decay + first : decay, per_neuron, n);
      start(v, v0 ? v0 + first : NULL, 1, n);
      start(gv, g_last ? g_last + first : NULL, 1, n);
      if (gd) start(gd, NULL, 0, n);
      if (threshold) {
        start(th, threshold + first, 1, n);
        start(gth, NULL, 0, n);
        backward_block(x + first, x_step, g + first, g_step, d, th, v, gv, gd, gth, history,
                       gx + first, M, T, n, s, stream);
        memcpy(g_threshold + first, gth, n * sizeof(REAL));
      } else {
        backward_block_one(x + first, x_step, g + first, g_step, d, v, gv, gd, history, gx + first,
                           M, T, n, s, stream);
      }
      drain(stream);
      if (g_v0) memcpy(g_v0 + first, gv, n * sizeof(REAL));
      if (gd) memcpy(g_decay + first, gd, n * sizeof(REAL));
    }
    free(d);
  }
  return failed;
}
