// Batch norm and leaky integrate-and-fire neurons over a whole sequence, in one pass forward and
// two backward. Explained in nbs/snn/kernels/04_fused_norm.ipynb. Compiled as lif.c is.

#include "lif.c"

// == Channels ==

typedef struct {
  ptrdiff_t T, M, inner, channels;
  int threads;
} shape;
typedef struct {
  ptrdiff_t at, channel, length;
} run;

INLINE run first_run(ptrdiff_t first, ptrdiff_t n, shape s) {
  ptrdiff_t left = s.inner == 1 ? s.channels - first % s.channels : s.inner - first % s.inner;
  return (run){0, first / s.inner % s.channels, smaller(left, n)};
}

INLINE run next_run(run r, ptrdiff_t n, shape s) {
  ptrdiff_t channel = s.inner == 1 || r.channel + 1 == s.channels ? 0 : r.channel + 1,
            at = r.at + r.length;
  return (run){at, channel, smaller(s.inner == 1 ? s.channels : s.inner, n - at)};
}

// the size of a block: whole pixels where channels are last and fill whole cache lines
INLINE ptrdiff_t block_of(shape s) {
  ptrdiff_t block = block_size(s.M, s.T, 1);
  return s.inner == 1 && s.channels % LINE == 0 && s.channels <= block ? block - block % s.channels
                                                                        : block;
}

// does each place of a block belong to the same channel in every block?
INLINE int alike(shape s) { return s.inner == 1 && block_of(s) % s.channels == 0; }

// write one number per channel into a row
INLINE void spread(vec *to, const REAL *from, ptrdiff_t first, ptrdiff_t n, shape s) {
  for (run r = first_run(first, n, s); r.at < n; r = next_run(r, n, s)) {
    REAL *p = (REAL *)to + r.at;
    if (s.inner == 1)
      memcpy(p, from + r.channel, r.length * sizeof(REAL));
    else
      for (ptrdiff_t j = 0; j < r.length; j++) p[j] = from[r.channel];
  }
}

// add a row up by channel, then clear it
INLINE void gather(double *to, vec *from, ptrdiff_t first, ptrdiff_t n, shape s) {
  for (run r = first_run(first, n, s); r.at < n; r = next_run(r, n, s)) {
    const REAL *p = (const REAL *)from + r.at;
    if (s.inner == 1) {
      for (ptrdiff_t j = 0; j < r.length; j++) to[r.channel + j] += p[j];
      continue;
    }
    vec sum[LINE / LANES] = {0}, part[LINE / LANES];
    double rest = 0;
    ptrdiff_t j = 0;
    for (; j + LINE <= r.length; j += LINE) {
      memcpy(part, p + j, sizeof part);
      for (int k = 0; k < LINE / LANES; k++) sum[k] += part[k];
    }
    for (; j < r.length; j++) rest += p[j];
    for (int k = 0; k < LINE; k++) rest += sum[k / LANES][k % LANES];
    to[r.channel] += rest;
  }
  start(from, NULL, 0, n);
}

// == Moments, one row ==

enum { CHUNKS = 64 };

INLINE ptrdiff_t chunk_start(shape s, ptrdiff_t chunk) {
  return (s.M + block_of(s) - 1) / block_of(s) * chunk / CHUNKS;
}

// does this block need a new row of constants?
INLINE int begins(shape s, ptrdiff_t i, ptrdiff_t from) { return !alike(s) || i == from; }

// are the sums gathered after this block?
INLINE int gathers(shape s, ptrdiff_t i, ptrdiff_t from, ptrdiff_t to) {
  return !alike(s) || (i - from) % 16 == 15 || i + 1 == to;
}

INLINE REAL single(const STORE *p) {
  STORE alone[LANES] = {*p};
  return load(alone)[0];
}

static void moments_row(const STORE *x, const vec *centre, vec *sum, vec *square, ptrdiff_t n) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    vec u = load(x + k * LANES) - centre[k];
    sum[k] += u;
    square[k] += u * u;
  }
}

// == Moments ==

// sum over chunks of number `place`, of `each` in a chunk
static double total(const double *sums, ptrdiff_t each, ptrdiff_t place) {
  double sum = 0;
  for (ptrdiff_t chunk = 0; chunk < CHUNKS; chunk++) sum += sums[chunk * each + place];
  return sum;
}

int moments(const STORE *x, ptrdiff_t x_step, double *mean, double *var, shape s) {
  ptrdiff_t block = block_of(s), C = s.channels;
  double *sums = calloc(CHUNKS * 2 * C, sizeof(double));
  REAL *about = malloc(C * sizeof(REAL));
  if (!sums || !about) {
    free(sums);
    free(about);
    return 1;
  }
  for (ptrdiff_t c = 0; c < C; c++) about[c] = single(x + c * s.inner);
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
  for (ptrdiff_t chunk = 0; chunk < CHUNKS; chunk++) {
    vec centre[BLOCK / LANES], sum[BLOCK / LANES] = {0}, square[BLOCK / LANES] = {0};
    ptrdiff_t from = chunk_start(s, chunk), until = chunk_start(s, chunk + 1);
    for (ptrdiff_t i = from; i < until; i++) {
      ptrdiff_t first = i * block, n = smaller(block, s.M - first);
      if (begins(s, i, from)) spread(centre, about, first, block, s);
      for (ptrdiff_t t = 0; t < s.T; t++)
        moments_row(x + t * x_step + first, centre, sum, square, n);
      if (gathers(s, i, from, until)) {
        gather(sums + 2 * chunk * C, sum, first, block, s);
        gather(sums + (2 * chunk + 1) * C, square, first, block, s);
      }
    }
  }
  double count = (double)s.T * s.M / C;
  for (ptrdiff_t c = 0; c < C; c++) {
    double off = total(sums, 2 * C, c) / count,
           rest = total(sums, 2 * C, C + c) / count - off * off;
    mean[c] = about[c] + off;
    var[c] = rest > 0 ? rest : 0;
  }
  free(sums);
  free(about);
  return 0;
}

// == Forward, one row ==

INLINE vec current(const STORE *x, const STORE *added, const vec *scale, const vec *shift,
                   ptrdiff_t k) {
  vec y = scale[k] * load(x + k * LANES) + shift[k];
  return added ? y + load(added + k * LANES) : y;
}

INLINE void normed_row(const STORE *x, const STORE *next, const STORE *added, const vec *scale,
                       const vec *shift, vec d, vec *v, STORE *out, ptrdiff_t n, settings lif,
                       int stream) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec h = d * v[k] + current(x, added, scale, shift, k);
    store(out + k * LANES, lif.spikes ? one_where(h > all(lif.threshold)) : h, stream);
    v[k] = reset(h, all(lif.threshold), lif.hard);
  }
}

typedef struct {
  const REAL *weight, *bias;
  const double *mean, *var;
  double eps;
} norm;

// scale and shift of every channel, or NULL
static REAL *line_of(norm w, ptrdiff_t C) {
  REAL *line = malloc(2 * C * sizeof(REAL));
  for (ptrdiff_t c = 0; c < C && line; c++) {
    double scale = (w.weight ? w.weight[c] : 1) / sqrt(w.var[c] + w.eps);
    line[c] = scale;
    line[C + c] = (w.bias ? w.bias[c] : 0) - scale * w.mean[c];
  }
  return line;
}

// == Forward ==

int normed_forward(const STORE *x, ptrdiff_t x_step, const STORE *added, ptrdiff_t added_step,
                   norm w, double decay, STORE *out, shape s, settings lif, int stream) {
  ptrdiff_t block = block_of(s);
  REAL *scale = line_of(w, s.channels), *shift = scale + s.channels;
  int bad = scale ? 0 : -1;
  if (!bad)
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1) reduction(|: bad)
    for (ptrdiff_t chunk = 0; chunk < CHUNKS; chunk++) {
      vec v[BLOCK / LANES], a[BLOCK / LANES], b[BLOCK / LANES];
      ptrdiff_t from = chunk_start(s, chunk);
      for (ptrdiff_t i = from; i < chunk_start(s, chunk + 1); i++) {
        ptrdiff_t first = i * block, n = smaller(block, s.M - first);
        if (begins(s, i, from)) {
          spread(a, scale, first, block, s);
          spread(b, shift, first, block, s);
        }
        start(v, NULL, 0, n);
        for (ptrdiff_t t = 0; t < s.T; t++) {
          const STORE *xt = x + t * x_step + first,
                      *next = t + 1 < s.T ? xt + x_step : x + first + n;
          STORE *to = out + t * s.M + first;
          if (added)
            normed_row(xt, next, added + t * added_step + first, a, b, all(decay), v, to, n, lif,
                       stream);
          else
            normed_row(xt, next, NULL, a, b, all(decay), v, to, n, lif, stream);
        }
        bad |= unsound(v, n);
      }
      drain(stream);
    }
  free(scale);
  return bad;
}

// == Backward, one block ==

INLINE void normed_replay_row(const STORE *x, const STORE *added, const vec *scale,
                              const vec *shift, vec d, vec *v, vec *history, ptrdiff_t n,
                              settings lif) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    vec h = history[k] = d * v[k] + current(x, added, scale, shift, k);
    v[k] = reset(h, all(lif.threshold), lif.hard);
  }
}

typedef struct {
  vec *zero, *v, *gv, *gd, *scale, *shift, *mean, *sum, *product, *history;
} scratch;

INLINE scratch cut(vec *from, ptrdiff_t row) {
  return (scratch){from,           from + row,     from + 2 * row, from + 3 * row, from + 4 * row,
                   from + 5 * row, from + 6 * row, from + 7 * row, from + 8 * row, from + 9 * row};
}

static void normed_adjoint_row(const STORE *x, const STORE *g, const STORE *next, STORE *gy, vec d,
                               vec *h, scratch w, ptrdiff_t n, settings lif, int keep, int stream) {
  for (ptrdiff_t k = 0; k < n / LANES; k++) {
    __builtin_prefetch(next + k * LANES, 0, 2);
    vec gh = adjoint(h[k], load(g + k * LANES), w.gv[k], lif);
    store(gy + k * LANES, gh, stream);
    w.gv[k] = gh * d;
    w.sum[k] += gh;
    w.product[k] += gh * (load(x + k * LANES) - w.mean[k]);
    if (keep) h[k] = gh;
  }
}

INLINE void normed_block(const STORE *x, ptrdiff_t x_step, const STORE *added, ptrdiff_t added_step,
                         const STORE *g, ptrdiff_t g_step, STORE *gy, ptrdiff_t gy_step, vec d,
                         scratch w, ptrdiff_t row, ptrdiff_t T, ptrdiff_t n, settings lif,
                         int need_decay, int stream) {
  for (ptrdiff_t t = 0; t < T; t++) {
    if (added)
      normed_replay_row(x + t * x_step, added + t * added_step, w.scale, w.shift, d, w.v,
                        w.history + t * row, n, lif);
    else
      normed_replay_row(x + t * x_step, NULL, w.scale, w.shift, d, w.v, w.history + t * row, n,
                        lif);
  }
  for (ptrdiff_t t = T - 1; t >= 0; t--) {
    vec *h = w.history + t * row;
    normed_adjoint_row(x + t * x_step, g + t * g_step, t ? g + (t - 1) * g_step : x + n,
                       gy + t * gy_step, d, h, w, n, lif, need_decay, stream);
    if (need_decay) decay_row(h, t ? h - row : NULL, w.zero, NULL, w.gd, n, lif);
  }
}

// == Backward, first pass ==

// sums[CHUNKS][3][channels] must be zero
static int first_pass(const STORE *x, ptrdiff_t x_step, const STORE *added, ptrdiff_t added_step,
                      const STORE *g, ptrdiff_t g_step, const REAL *line, const REAL *mean,
                      double decay, STORE *gy, double *sums, shape s, settings lif, int need_decay,
                      int stream) {
  ptrdiff_t block = block_of(s), row = block / LANES, C = s.channels;
  int failed = 0;
#pragma omp parallel num_threads(s.threads) reduction(|: failed)
  {
    vec *memory = aligned_alloc(64, (s.T + 9) * block * sizeof(REAL));
    scratch w = cut(memory, row);
    failed |= memory == NULL;
    if (memory) memset(memory, 0, 9 * block * sizeof(REAL));
#pragma omp for schedule(dynamic, 1)
    for (ptrdiff_t chunk = 0; chunk < CHUNKS; chunk++) {
      double *to = sums + 3 * chunk * C;
      ptrdiff_t from = chunk_start(s, chunk), until = chunk_start(s, chunk + 1);
      for (ptrdiff_t i = from; i < until && memory; i++) {
        ptrdiff_t first = i * block, n = smaller(block, s.M - first);
        if (begins(s, i, from)) {
          spread(w.scale, line, first, block, s);
          spread(w.shift, line + C, first, block, s);
          spread(w.mean, mean, first, block, s);
        }
        start(w.v, NULL, 0, n);
        start(w.gv, NULL, 0, n);
        normed_block(x + first, x_step, added ? added + first : NULL, added_step, g + first, g_step,
                     gy + first, s.M, all(decay), w, row, s.T, n, lif, need_decay, stream);
        if (!gathers(s, i, from, until)) continue;
        gather(to, w.sum, first, block, s);
        gather(to + C, w.product, first, block, s);
        if (need_decay) gather(to + 2 * C, w.gd, first, block, s);
      }
      drain(stream);
    }
    free(memory);
  }
  return failed;
}

// == Backward, second pass ==

static void finish_row(const STORE *x, const STORE *gy, STORE *gx, const vec *mean, const vec *a,
                       const vec *p, const vec *q, ptrdiff_t n) {
  for (ptrdiff_t k = 0; k < n / LANES; k++)
    store(gx + k * LANES,
          a[k] * load(gy + k * LANES) + p[k] * (load(x + k * LANES) - mean[k]) + q[k], 0);
}

// gx from gy and x, with each[4][channels]: mean, a, p, q
static void second_pass(const STORE *x, ptrdiff_t x_step, const STORE *gy, STORE *gx,
                        const REAL *each, shape s) {
  ptrdiff_t block = block_of(s);
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
  for (ptrdiff_t chunk = 0; chunk < CHUNKS; chunk++) {
    vec row[4][BLOCK / LANES];
    ptrdiff_t from = chunk_start(s, chunk);
    for (ptrdiff_t i = from; i < chunk_start(s, chunk + 1); i++) {
      ptrdiff_t first = i * block, n = smaller(block, s.M - first);
      for (int k = 0; k < 4 && begins(s, i, from); k++)
        spread(row[k], each + k * s.channels, first, block, s);
      for (ptrdiff_t t = 0; t < s.T; t++)
        finish_row(x + t * x_step + first, gy + t * s.M + first, gx + t * s.M + first, row[0],
                   row[1], row[2], row[3], n);
    }
  }
}

// == Backward ==

int normed_backward(const STORE *x, ptrdiff_t x_step, const STORE *added, ptrdiff_t added_step,
                    const STORE *g, ptrdiff_t g_step, norm w, int batch, double decay, STORE *gy,
                    STORE *gx, REAL *g_weight, REAL *g_bias, double *g_decay, shape s, settings lif,
                    int stream) {
  ptrdiff_t C = s.channels;
  double *sums = calloc(CHUNKS * 3 * C, sizeof(double)), count = (double)s.T * s.M / C;
  REAL *line = line_of(w, C), *each = malloc(4 * C * sizeof(REAL));
  int failed = !sums || !line || !each;
  for (ptrdiff_t c = 0; c < C && !failed; c++) each[c] = w.mean[c];
  failed = failed || first_pass(x, x_step, added, added_step, g, g_step, line, each, decay, gy,
                                sums, s, lif, g_decay != NULL, stream);
  for (ptrdiff_t c = 0; c < C && !failed; c++) {
    double bias = total(sums, 3 * C, c), product = total(sums, 3 * C, C + c),
           var = w.var[c] + w.eps;
    g_bias[c] = bias;
    g_weight[c] = product / sqrt(var);
    if (g_decay) *g_decay += total(sums, 3 * C, 2 * C + c);
    each[C + c] = line[c];
    // running averages do not depend on x
    each[2 * C + c] = batch ? -line[c] * product / (count * var) : 0;
    each[3 * C + c] = batch ? -line[c] * bias / count : 0;
  }
  if (gx && !failed) second_pass(x, x_step, gy, gx, each, s);
  free(sums);
  free(line);
  free(each);
  return failed;
}
