// Decoders of event files, word by word; nbs/data/readers/12_c_decoders.ipynb explains them.
// Times are microseconds. A state stays from block to block, and is negative before it is set.
#include <stddef.h>
#include <stdint.h>

// == EVT 3 ==
// Return the most events that words can contain.
ptrdiff_t evt3_most(const uint16_t *words, ptrdiff_t count) {
  static const uint16_t vector[16] = {[4] = 0xFFF, [5] = 0xFF}, single[16] = {[2] = 1};
  ptrdiff_t most = 0;
  for (ptrdiff_t i = 0; i < count; i++) {
    unsigned kind = words[i] >> 12;
    most += __builtin_popcount(words[i] & vector[kind]) + single[kind];
  }
  return most;
}

// Decode words; return the number of events, or -1 - kind at a word of a reserved kind.
// state: upper time (turns of the counter included), lower time, row, column, polarity
ptrdiff_t evt3(const uint16_t *words, ptrdiff_t count, int64_t *state, int64_t *t, int32_t *x,
               int16_t *y, int8_t *p) {
  int64_t high = state[0], low = state[1], row = state[2], column = state[3];
  int64_t polarity = state[4];
  ptrdiff_t n = 0;
  for (ptrdiff_t i = 0; i < count; i++) {
    unsigned kind = words[i] >> 12, value = words[i] & 0xFFFu;
    unsigned bits = 0, size = 0;
    switch (kind) {
    case 0: row = value & 0x7FF; continue;
    case 2:
      t[n] = high << 12 | low, x[n] = value & 0x7FF, y[n] = (int16_t)row, p[n] = value >> 11;
      n += high >= 0 && row >= 0;
      continue;
    case 3: column = value & 0x7FF, polarity = value >> 11; continue;
    case 4: bits = value, size = 12; break;
    case 5: bits = value & 0xFF, size = 8; break;
    case 6: low = value; continue;
    case 8: {
      int64_t before = high;
      int turned = before >= 0 && (before & 0xFFF) - (int64_t)value >= 2048;
      high = (before < 0 ? 0 : ((before >> 12) + turned) << 12) + value;
      low = high == before ? low : 0;
      continue;
    }
    case 7: case 10: case 14: case 15: continue;
    default: return -1 - (ptrdiff_t)kind;
    }
    if (high >= 0 && row >= 0 && column >= 0)
      for (; bits; bits &= bits - 1, n++) {
        t[n] = high << 12 | low, x[n] = (int32_t)(column + __builtin_ctz(bits));
        y[n] = (int16_t)row, p[n] = (int8_t)polarity;
      }
    column += size;
  }
  state[0] = high, state[1] = low, state[2] = row, state[3] = column, state[4] = polarity;
  return n;
}

// == EVT 2 ==
// Decode words; return the number of events, or -1 - kind at a word of a reserved kind.
// state: upper time (turns of the counter included)
ptrdiff_t evt2(const uint32_t *words, ptrdiff_t count, int64_t *state, int64_t *t, int16_t *x,
               int16_t *y, int8_t *p) {
  int64_t high = state[0];
  ptrdiff_t n = 0;
  for (ptrdiff_t i = 0; i < count; i++) {
    uint32_t word = words[i], kind = word >> 28;
    if (kind < 2) {
      t[n] = high << 6 | (word >> 22 & 63), x[n] = word >> 11 & 0x7FF, y[n] = word & 0x7FF;
      p[n] = (int8_t)kind;
      n += high >= 0;
    } else if (kind == 8) {
      int64_t value = word & 0xFFFFFFF, before = high;
      int turned = before >= 0 && (before & 0xFFFFFFF) - value >= 1 << 27;
      high = (before < 0 ? 0 : ((before >> 28) + turned) << 28) + value;
    } else if (kind != 10 && kind != 14 && kind != 15) {
      return -1 - (ptrdiff_t)kind;
    }
  }
  state[0] = high;
  return n;
}

// == DAT ==
// Decode records of a time and a word; row and polarity begin at the bits y_at and p_at.
// Return all polarities, bit by bit: what does not fit into p is seen there.
// state: last counter (negative before the first), turns of the counter
uint32_t dat(const uint32_t *records, ptrdiff_t count, int64_t *state, int y_at, int p_at, int64_t *t,
             int16_t *x, int16_t *y, int8_t *p) {
  int64_t last = state[0] < 0 ? 0 : state[0], turns = state[1], half = (int64_t)1 << 31;
  uint32_t x_mask = (1u << y_at) - 1, y_mask = (1u << (p_at - y_at)) - 1, every = 0;
  int turned = 0;  // anywhere in this block
  for (ptrdiff_t i = 0; i < count; i++) {
    uint32_t word = records[2 * i + 1];
    int64_t step = (int64_t)records[2 * i] - (i ? (int64_t)records[2 * i - 2] : last);
    turned |= (step < -half) | (step > half);
    t[i] = records[2 * i] + (turns << 32);
    x[i] = word & x_mask, y[i] = word >> y_at & y_mask, p[i] = (int8_t)(word >> p_at);
    every |= word >> p_at;
  }
  for (ptrdiff_t i = 0; turned && i < count; i++) {
    int64_t step = records[2 * i] - last;
    last = records[2 * i];
    turns += (step < -half) - (step > half && turns > 0);
    t[i] = last + (turns << 32);
  }
  if (count)
    state[0] = records[2 * count - 2], state[1] = turns;
  return every;
}
