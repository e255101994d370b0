// Leaky integrate-and-fire neurons with an adaptive threshold over a whole sequence: forward and
// backward pass. Explained in nbs/snn/kernels/05_fused_adaptive.ipynb. Compiled as lif.c is.

#include "lif.c"

// == Constants ==

// one number for all neurons, or one each
typedef struct {
  const REAL *at;
  ptrdiff_t each;
} constant;
typedef struct {
  constant decay, threshold, rise, kept;
} constants;

// the constants of a block of neurons, and what is added to their thresholds at present
typedef struct {
  vec *decay, *threshold, *rise, *kept, *v, *a;
} block;

INLINE void constant_row(vec *to, constant c, ptrdiff_t first, ptrdiff_t n) {
  start(to, c.each ? c.at + first : c.at, c.each != 0, n);
}

static void begin(block b, constants c, const REAL *v0, const REAL *a0, ptrdiff_t first,
                  ptrdiff_t n) {
  constant_row(b.decay, c.decay, first, n);
  constant_row(b.threshold, c.threshold, first, n);
  constant_row(b.rise, c.rise, first, n);
  constant_row(b.kept, c.kept, first, n);
  start(b.v, v0 ? v0 + first : NULL, 1, n);
  start(b.a, a0 ? a0 + first : NULL, 1, n);
}

// == Forward ==

INLINE void adaptive_row(const STORE *x, const STORE *next, block b, STORE *out, ptrdiff_t n,
                         int hard, int stream) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec v_th = b.threshold[k] + b.a[k], h = b.decay[k] * b.v[k] + load(x + k * LANES),
        s = one_where(h > v_th);
    store(out + k * LANES, s, stream);
    b.v[k] = reset(h, v_th, hard);
    b.a[k] = b.kept[k] * b.a[k] + b.rise[k] * s;
  }
}

int adaptive_forward(const STORE *x, ptrdiff_t x_step, constants c, const REAL *v0, const REAL *a0,
                     STORE *out, REAL *v_last, REAL *a_last, ptrdiff_t T, ptrdiff_t M, settings s,
                     int stream, int threads) {
  ptrdiff_t size = block_size(M, T, threads), blocks = M ? (M + size - 1) / size : 0;
  int bad = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(|: bad)
  for (ptrdiff_t i = 0; i < blocks; i++) {
    vec rows[6][BLOCK / LANES];
    block b = {rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]};
    ptrdiff_t n = smaller(size, whole(M - i * size)), first = smaller(i * size, M - n);
    begin(b, c, v0, a0, first, n);
    for (ptrdiff_t t = 0; t < T; t++) {
      const STORE *xt = x + t * x_step + first, *next = t + 1 < T ? xt + x_step : x + first + n;
      adaptive_row(xt, next, b, out + t * M + first, n, s.hard, stream);
    }
    bad |= unsound(b.v, n) | unsound(b.a, n);
    drain(stream);
    if (v_last) memcpy(v_last + first, b.v, n * sizeof(REAL));
    if (a_last) memcpy(a_last + first, b.a, n * sizeof(REAL));
  }
  return bad;
}

// == Backward, one step ==

// gradients of a block of neurons; those of the constants are NULL where none is needed
typedef struct {
  vec *v, *a, *decay, *threshold, *rise, *kept;
} adjoints;

INLINE void adaptive_replay(const STORE *x, const STORE *next, block b, vec *h, vec *a,
                            ptrdiff_t n, int hard) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec v_th = b.threshold[k] + b.a[k];
    a[k] = b.a[k];
    h[k] = b.decay[k] * b.v[k] + load(x + k * LANES);
    b.v[k] = reset(h[k], v_th, hard);
    b.a[k] = b.kept[k] * b.a[k] + b.rise[k] * one_where(h[k] > v_th);
  }
}

// h is overwritten with its gradient
INLINE void adaptive_adjoint(const STORE *g, const STORE *next, block b, adjoints to, vec *h,
                             const vec *a, STORE *gx, ptrdiff_t n, settings s, int learned,
                             int stream) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec v_th = b.threshold[k] + a[k], gv = to.v[k], ga = to.a[k], fired = one_where(h[k] > v_th);
    vec gs = load(g + k * LANES) + b.rise[k] * ga;
    if (!s.detach) gs -= gv * (s.hard ? h[k] : v_th);
    vec through = gs * surrogate(h[k] - v_th, s.kind, s.a, s.b);
    vec gh = (s.hard ? gv * (all(1) - fired) : gv) + through;
    vec g_th = s.hard ? -through : -through - gv * fired;
    if (learned) {
      to.threshold[k] += g_th;
      to.rise[k] += ga * fired;
      to.kept[k] += ga * a[k];
    }
    store(gx + k * LANES, gh, stream);
    to.a[k] = b.kept[k] * ga + g_th;
    to.v[k] = gh * b.decay[k];
    h[k] = gh;
  }
}

// == Backward, one block ==

// the decay's share of a step: the gradient of h times the membrane before it
static void adaptive_decay(const vec *gh, const vec *before, const vec *a, block b, vec *gd,
                           ptrdiff_t n, int hard) {
  for (ptrdiff_t k = 0; k < n / LANES; k++)
    gd[k] += gh[k] * (a ? reset(before[k], b.threshold[k] + a[k], hard) : before[k]);
}

INLINE void adaptive_block(const STORE *x, ptrdiff_t x_step, const STORE *g, ptrdiff_t g_step,
                           block b, adjoints to, vec *h, vec *a, STORE *gx, ptrdiff_t gx_step,
                           ptrdiff_t T, ptrdiff_t n, settings s, int learned, int stream) {
  ptrdiff_t row = n / LANES;
  vec *v0 = h + T * row;  // a last row of the history: the membrane it started from
  memcpy(v0, b.v, n * sizeof(REAL));
  for (ptrdiff_t t = 0; t < T; t++)
    adaptive_replay(x + t * x_step, t + 1 < T ? x + (t + 1) * x_step : g + t * g_step, b,
                    h + t * row, a + t * row, n, s.hard);
  for (ptrdiff_t t = T - 1; t >= 0; t--) {
    adaptive_adjoint(g + t * g_step, t ? g + (t - 1) * g_step : x + n, b, to, h + t * row,
                     a + t * row, gx + t * gx_step, n, s, learned, stream);
    if (!to.decay) continue;
    adaptive_decay(h + t * row, t ? h + (t - 1) * row : v0, t ? a + (t - 1) * row : NULL, b,
                   to.decay, n, s.hard);
  }
}

// the same code twice: with gradients of the constants, and without
static __attribute__((noinline)) void adaptive_block_fixed(
    const STORE *x, ptrdiff_t x_step, const STORE *g, ptrdiff_t g_step, block b, adjoints to,
    vec *h, vec *a, STORE *gx, ptrdiff_t gx_step, ptrdiff_t T, ptrdiff_t n, settings s,
    int stream) {
  adaptive_block(x, x_step, g, g_step, b, to, h, a, gx, gx_step, T, n, s, 0, stream);
}

// == Backward ==

// where the gradients of states and constants go, [M] each; NULL where none is needed
typedef struct {
  REAL *v0, *a0, *decay, *threshold, *rise, *kept;
} gradients;

INLINE void put(REAL *to, const vec *from, ptrdiff_t n) {
  if (to) memcpy(to, from, n * sizeof(REAL));
}

INLINE REAL *at(REAL *row, ptrdiff_t first) { return row ? row + first : NULL; }

int adaptive_backward(const STORE *x, ptrdiff_t x_step, const STORE *g, ptrdiff_t g_step,
                      constants c, const REAL *v0, const REAL *a0, const REAL *gv_last,
                      const REAL *ga_last, STORE *gx, gradients to, ptrdiff_t T, ptrdiff_t M,
                      settings s, int stream, int threads) {
  // two histories are kept: blocks as for twice the steps
  ptrdiff_t size = block_size(M, 2 * T, threads), blocks = M ? (M + size - 1) / size : 0,
            row = size / LANES;
  int failed = 0, learned = to.threshold || to.rise || to.kept;
#pragma omp parallel num_threads(threads) reduction(|: failed)
  {
    vec *r = aligned_alloc(64, ((2 * T + 13) * size + LINE) * sizeof(REAL));
    failed |= r == NULL;
    block b = {r, r + row, r + 2 * row, r + 3 * row, r + 4 * row, r + 5 * row};
    adjoints part = {r + 6 * row, r + 7 * row, to.decay ? r + 8 * row : NULL,
                     r + 9 * row, r + 10 * row, r + 11 * row};
    vec *a = r + 12 * row, *h = r + (12 + T) * row;
#pragma omp for schedule(dynamic, 4)
    for (ptrdiff_t i = 0; i < blocks; i++) {
      if (failed) continue;
      ptrdiff_t n = smaller(size, whole(M - i * size)), first = smaller(i * size, M - n);
      begin(b, c, v0, a0, first, n);
      start(part.v, gv_last ? gv_last + first : NULL, 1, n);
      start(part.a, ga_last ? ga_last + first : NULL, 1, n);
      if (part.decay) start(part.decay, NULL, 0, n);
      if (learned) {
        start(part.threshold, NULL, 0, n);
        start(part.rise, NULL, 0, n);
        start(part.kept, NULL, 0, n);
        adaptive_block(x + first, x_step, g + first, g_step, b, part, h, a, gx + first, M, T, n, s,
                       1, stream);
        put(at(to.threshold, first), part.threshold, n);
        put(at(to.rise, first), part.rise, n);
        put(at(to.kept, first), part.kept, n);
      } else {
        adaptive_block_fixed(x + first, x_step, g + first, g_step, b, part, h, a, gx + first, M, T,
                             n, s, stream);
      }
      drain(stream);
      put(at(to.v0, first), part.v, n);
      put(at(to.a0, first), part.a, n);
      if (part.decay) put(at(to.decay, first), part.decay, n);
    }
    free(r);
  }
  return failed;
}
