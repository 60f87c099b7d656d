// Attention over one stretch of positions, the same float arithmetic for every instruction set. The including unit
// provides unpack_keys, unpack_values and multiply:
//   unpack_keys   rows -> panels [position / 16][quad of the row][16 positions][4 codes]
//   unpack_values rows -> panels [16 values of the row][position / 4][16 values][4 positions]
//   multiply      out[line][16 p + i] = sum over quads j of a[line][4 j .. 4 j + 3] . panels[p][j][i][4]
// With 4 bits a 32-bit word of a row holds 8 codes; masked, its even codes are one quad and its odd codes the next.

#include "common/lanes.h"

constexpr int64_t TILE = ATTENTION_TILE, BLOCK = ATTENTION_BLOCK;
constexpr float NOTHING = 1e-30f;  // weights below it are zero
constexpr float LOWEST = -INFINITY;

inline int64_t partial_size(int64_t dim) { return dim + 2; }
inline int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows are read 16 bytes at a time. Other widths than 4 bits are multiplied as bytes.
int64_t padded_width(int64_t dim, int bits) { return bits == 4 ? divided(dim, 32) * 32 : divided(dim, 16) * 16; }

// Where value d of a row stands among the digits of a query, and among the sums of values.
inline int64_t key_slot(int64_t d, int bits) { return bits == 4 ? d / 8 * 8 + d % 2 * 4 + d % 8 / 2 : d; }
inline int64_t value_slot(int64_t d, int bits) { return bits == 4 ? d / 32 * 32 + d % 2 * 16 + d % 32 / 2 : d; }

// The largest number of the fixed point: the top byte stays below 128, the number below 2^22 (see round_even).
inline float most(int parts) { return parts == 2 ? 127.0f * 256.0f : 63.0f * 65536.0f; }

// Bytes of round(x), lowest first: x = sum of 256^part * to[part], for |x| <= most(parts).
inline void split_digits(const Floats& x, int parts, Ints* to) {
  Ints code = __builtin_convertvector((x + 12582912.0f) - 12582912.0f, Ints);
  for (int part = 0; part < parts; ++part) {
    const Ints rest = (code + 128) >> 8;
    to[part] = code - (rest << 8);
    code = rest;
  }
}

void prepare_queries(const float* x, int64_t count, int64_t dim, int bits, int parts, float factor, int8_t* digits,
                     float* steps, float* sums) {
  const int64_t width = padded_width(dim, bits);
  for (int64_t line = 0; line < count; ++line, x += dim, digits += parts * width) {
    float peak = 0.0f, bad = 0.0f;
    for (int64_t d = 0; d < dim; ++d) {
      const float size = x[d] < 0.0f ? -x[d] : x[d];
      peak = size > peak ? size : peak;
      bad += x[d] * 0.0f;
    }
    std::memset(digits, 0, size_t(parts * width));
    for (int part = 0; part < parts; ++part) sums[line * parts + part] = 0.0f;
    steps[line] = peak / most(parts) * factor + bad;  // NaN when the row holds NaN or Inf: then so is its output
    if (!(peak > NOTHING) || bad != 0.0f) continue;
    const float inverse = most(parts) / peak;
    for (int64_t at = 0; at < dim; at += LANES) {
      Floats values = {};
      Ints bytes[ATTENTION_PARTS];
      const int64_t filled = least(LANES, dim - at);
      std::memcpy(&values, x + at, size_t(filled) * 4);
      split_digits(values * inverse, parts, bytes);
      for (int part = 0; part < parts; ++part) {
        for (int64_t i = 0; i < filled; ++i) {
          digits[part * width + key_slot(at + i, bits)] = int8_t(bytes[part][i]);
          sums[line * parts + part] += float(bytes[part][i]);
        }
      }
    }
  }
}

// Scales and zero points of a tile. Behind `count`: zero.
struct TileScales {
  alignas(64) float scale[TILE];
  alignas(64) float zero[TILE];
};

void load_scales(const StoredRows& rows, int64_t at, int64_t stride, int64_t count, int bits, TileScales& to) {
  for (int64_t t = 0; t < count; ++t) {
    to.scale[t] = load_f16(rows.scale[at + t * stride]);
    to.zero[t] = rows.zero ? float(rows.zero[at + t * stride]) : float(1 << (bits - 1));
  }
  for (int64_t t = count; t < TILE; ++t) to.scale[t] = to.zero[t] = 0.0f;
}

// hide[t]: 0 where row `row` of sequence `batch` sees position at + t, minus infinity elsewhere. Whether it sees any.
bool hide_positions(const AttentionCall& call, int64_t batch, int64_t row, int64_t at, int64_t count, float* hide) {
  const int64_t past = call.length - call.rows;
  const int64_t first = call.first ? call.first[batch * call.rows + row] : 0;
  const int64_t sink = call.sinks && call.sink_start ? call.sink_start[batch] : 0, exact = sink + call.sinks;
  const uint8_t* tree = nullptr;
  if (call.tree) tree = call.tree + ((call.trees > 1 ? batch : 0) * call.rows + row) * call.rows;
  bool any = false;
  for (int64_t t = 0; t < TILE; ++t) {
    const int64_t position = at + t;
    bool seen = t < count && !(position >= sink && position < exact);
    if (seen && position < past) seen = position >= first;
    else if (seen) seen = tree ? tree[position - past] != 0 : position - past <= row;
    hide[t] = seen ? 0.0f : LOWEST;
    any |= seen;
  }
  return any;
}

// Every row sees all TILE positions.
bool all_seen(const AttentionCall& call, int64_t batch, int64_t at, int64_t count) {
  if (count < TILE || at + TILE > call.length - call.rows) return false;
  if (call.sinks) {
    const int64_t sink = call.sink_start ? call.sink_start[batch] : 0;
    if (at < sink + call.sinks && sink < at + TILE) return false;
  }
  for (int64_t row = 0; call.first && row < call.rows; ++row) {
    if (call.first[batch * call.rows + row] > at) return false;
  }
  return true;
}

// What one line carries from tile to tile, and from the scores of a tile to its values.
struct Line {
  float peak, total;                 // largest score so far, sum of 2^(score - peak)
  float shrink, step;                // of the sums so far; of the fixed-point weights of this tile
  float zeros[ATTENTION_PARTS];      // sum of weight digits times zero points
  bool active;                       // sees something of this tile
};

void score(const int32_t* dots, int parts, const float* sums, float step, const TileScales& keys, float* s) {
  if (parts == 2) {
    for (int64_t t = 0; t < TILE; ++t) {
      const float low = float(dots[t]) - keys.zero[t] * sums[0];  // exact, as is `high`
      const float high = float(dots[TILE + t]) - keys.zero[t] * sums[1];
      s[t] = (high * 256.0f + low) * (step * keys.scale[t]);
    }
  } else {
    for (int64_t t = 0; t < TILE; ++t) {
      const float low = float(dots[t]) - keys.zero[t] * sums[0];
      const float middle = float(dots[TILE + t]) - keys.zero[t] * sums[1];
      const float high = float(dots[2 * TILE + t]) - keys.zero[t] * sums[2];
      s[t] = ((high * 256.0f + middle) * 256.0f + low) * (step * keys.scale[t]);
    }
  }
}

// Scores s [TILE] -> weights of the values in fixed point, weights [parts][TILE].
void soften(float* s, const float* hide, const TileScales& values, int parts, Line& line, int8_t* weights) {
  const Floats lowest = Floats{} + LOWEST;
  Floats peaks = lowest, sums = {}, bads = {}, tops = {}, v, scale;
  for (int64_t t = 0; t < TILE; t += LANES) {
    load_lanes(s + t, v);
    load_lanes(values.scale + t, scale);
    Floats bad = v * 0.0f + scale * 0.0f;
    if (hide) {
      Floats hidden;
      load_lanes(hide + t, hidden);
      pick_greater(hidden, lowest, v, lowest, v);
      pick_greater(hidden, lowest, bad, Floats{}, bad);
      store_lanes(v, s + t);
    }
    bads += bad;
    pick_greater(v, peaks, v, peaks, peaks);
  }
  const float peak = max_lanes(peaks, line.peak);
  for (int64_t t = 0; t < TILE; t += LANES) {
    load_lanes(s + t, v);
    load_lanes(values.scale + t, scale);
    Floats p;
    raise(v - peak, p);
    sums += p;
    p *= scale;
    pick_greater(p, tops, p, tops, tops);
    store_lanes(p, s + t);
  }
  line.shrink = line.peak == LOWEST ? 0.0f : power(line.peak - peak);
  line.total = line.total * line.shrink + sum_lanes(sums) + sum_lanes(bads);  // NaN, if anything seen is
  line.peak = peak;
  const float top = max_lanes(tops, 0.0f), inverse = top > NOTHING ? most(parts) / top : 0.0f;
  line.step = top > NOTHING ? top / most(parts) : 0.0f;
  Floats zeros[ATTENTION_PARTS] = {}, zero;  // integers below 2^24: exact
  for (int64_t t = 0; t < TILE; t += LANES) {
    Ints digits[ATTENTION_PARTS];
    load_lanes(s + t, v);
    load_lanes(values.zero + t, zero);
    split_digits(v * inverse, parts, digits);
    for (int part = 0; part < parts; ++part) {
      const Bytes bytes = __builtin_convertvector(digits[part], Bytes);
      std::memcpy(weights + part * TILE + t, &bytes, LANES);
      zeros[part] += __builtin_convertvector(digits[part], Floats) * zero;
    }
  }
  for (int part = 0; part < parts; ++part) line.zeros[part] = sum_lanes(zeros[part]);
}

// sums = sums * shrink + step * (digits . codes - digits . zeros)
void gather(const int32_t* products, int64_t width, int parts, const Line& line, float* sums) {
  const float shrink = line.shrink, step = line.step;
  const float z0 = line.zeros[0], z1 = line.zeros[1], z2 = line.zeros[2];
  if (parts == 2) {
    for (int64_t d = 0; d < width; ++d) {
      const float low = float(products[d]) - z0, high = float(products[width + d]) - z1;
      sums[d] = sums[d] * shrink + (high * 256.0f + low) * step;
    }
  } else {
    for (int64_t d = 0; d < width; ++d) {
      const float low = float(products[d]) - z0, middle = float(products[width + d]) - z1;
      const float high = float(products[2 * width + d]) - z2;
      sums[d] = sums[d] * shrink + ((high * 256.0f + middle) * 256.0f + low) * step;
    }
  }
}

// The scratch memory of one stretch, cut into its arrays.
struct Memory {
  char* next;
  int64_t size = 0;
  template <typename T>
  T* take(int64_t count) {
    T* const here = reinterpret_cast<T*>(next + size);
    size += divided(count * int64_t(sizeof(T)), 64) * 64;
    return here;
  }
};

struct Stretch {
  uint8_t *panels, *bytes;
  int32_t* products;
  float *scores, *hide, *sums;
  int8_t* weights;
  Line* lines;
};

Stretch divide_memory(const AttentionCall& call, Memory& memory) {
  const int64_t lines = call.rows * call.group, width = call.k.width > call.v.width ? call.k.width : call.v.width;
  Stretch to;
  to.panels = memory.take<uint8_t>(TILE * width);
  to.bytes = memory.take<uint8_t>(call.bits == 4 || call.bits == 8 ? 0 : TILE * width);
  to.products = memory.take<int32_t>(BLOCK * call.parts * (width > TILE ? width : TILE));
  to.scores = memory.take<float>(TILE);
  to.hide = memory.take<float>(call.rows * TILE);
  to.sums = memory.take<float>(lines * call.v.width);
  to.weights = memory.take<int8_t>(lines * call.parts * TILE);
  to.lines = memory.take<Line>(lines);
  return to;
}

int64_t stretch_memory(const AttentionCall& call) {
  Memory memory{nullptr};
  divide_memory(call, memory);
  return memory.size;
}

struct Rows {  // of a tile, as 4-bit or 8-bit codes
  const uint8_t* at;
  int64_t stride, bytes, count;
  int bits;
};

// The rows of a tile; widths other than 4 and 8 bits are spread to bytes first.
Rows tile_rows(const StoredRows& rows, int64_t index, int64_t stride, int64_t count, int bits, uint8_t* bytes) {
  const uint8_t* at = rows.packed + index * rows.bytes;
  if (bits == 4 || bits == 8) return {at, stride * rows.bytes, rows.bytes, count, bits};
  for (int64_t t = 0; t < count; ++t) {
    kernels().unpack_rows(at + t * stride * rows.bytes, rows.dim, bits, bytes + t * rows.width, 0, 1);
    std::memset(bytes + t * rows.width + rows.dim, 0, size_t(rows.width - rows.dim));
  }
  return {bytes, rows.width, rows.width, count, 8};
}

void unpack_keys(const Rows& rows, uint8_t* panels);
void unpack_values(const Rows& rows, uint8_t* panels);
void multiply(const int8_t* a, int64_t stride, int64_t lines, const uint8_t* panels, int64_t quads, int64_t count,
              int64_t panel_quads, int32_t* out, int64_t out_stride);

void attend_stretch(const AttentionCall& call, int64_t batch, int64_t head, int64_t begin, int64_t end, void* memory,
                    float* partial) {
  Memory cut{static_cast<char*>(memory)};
  const Stretch my = divide_memory(call, cut);
  const int64_t lines = call.rows * call.group, stride = call.batch * call.kv_heads, parts = call.parts;
  const int64_t first_line = (batch * call.kv_heads + head) * lines;
  for (int64_t line = 0; line < lines; ++line) my.lines[line] = {LOWEST, 0.0f, 0.0f, 0.0f, {}, false};
  std::memset(my.sums, 0, size_t(lines * call.v.width) * 4);
  TileScales keys, values;
  bool shown[ATTENTION_ROWS];
  for (int64_t at = begin; at < end; at += TILE) {
    const int64_t count = least(TILE, end - at), index = at * stride + batch * call.kv_heads + head;
    const bool masked = !all_seen(call, batch, at, count);
    bool any = !masked;
    for (int64_t row = 0; masked && row < call.rows; ++row) {
      shown[row] = hide_positions(call, batch, row, at, count, my.hide + row * TILE);
      any |= shown[row];
    }
    if (!any) continue;
    unpack_keys(tile_rows(call.k, index, stride, count, call.bits, my.bytes), my.panels);
    load_scales(call.k, index, stride, count, call.bits, keys);
    load_scales(call.v, index, stride, count, call.bits, values);
    for (int64_t line = 0; line < lines; line += BLOCK) {
      const int64_t height = least(BLOCK, lines - line);
      multiply(call.digits + (first_line + line) * parts * call.k.width, call.k.width, height * parts, my.panels,
               call.k.width / 4, divided(count, 16), call.k.width / 4, my.products, TILE);
      for (int64_t i = line; i < line + height; ++i) {
        const int64_t row = i / call.group;
        my.lines[i].active = !masked || shown[row];
        if (!my.lines[i].active) continue;
        score(my.products + (i - line) * parts * TILE, call.parts, call.sums + (first_line + i) * parts,
              call.steps[first_line + i], keys, my.scores);
        soften(my.scores, masked ? my.hide + row * TILE : nullptr, values, call.parts, my.lines[i],
               my.weights + i * parts * TILE);
      }
    }
    unpack_values(tile_rows(call.v, index, stride, count, call.bits, my.bytes), my.panels);
    for (int64_t line = 0; line < lines; line += BLOCK) {
      const int64_t height = least(BLOCK, lines - line);
      multiply(my.weights + line * parts * TILE, TILE, height * parts, my.panels, divided(count, 4), call.v.width / 16,
               TILE / 4, my.products, call.v.width);
      for (int64_t i = line; i < line + height; ++i) {
        if (!my.lines[i].active) continue;
        gather(my.products + (i - line) * parts * call.v.width, call.v.width, call.parts, my.lines[i],
               my.sums + i * call.v.width);
      }
    }
  }
  for (int64_t line = 0; line < lines; ++line, partial += partial_size(call.v.dim)) {
    partial[0] = my.lines[line].peak;
    partial[1] = my.lines[line].total;
    const float* sums = my.sums + line * call.v.width;
    for (int64_t d = 0; d < call.v.dim; ++d) partial[2 + d] = sums[value_slot(d, call.bits)];
  }
}

inline float dot(const float* a, const float* b, int64_t count) {
  float lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) lanes[0] += a[i] * b[i];
  return fold_sum(lanes);
}

// The exact positions, which the stretches leave out.
void attend_exact(const AttentionCall& call, int64_t batch, int64_t head, float* partial) {
  const int64_t start = call.sink_start ? call.sink_start[batch] : 0, lines = call.rows * call.group;
  const int64_t past = call.length - call.rows;
  const float factor = call.scaling * 1.44269504f;
  float row[ATTENTION_DIM];
  for (int64_t line = 0; line < lines; ++line) {
    float* to = partial + line * partial_size(call.v.dim);
    std::memset(to, 0, size_t(partial_size(call.v.dim)) * 4);
    to[0] = LOWEST;
    const float* query = call.query + ((batch * call.kv_heads + head) * lines + line) * call.k.dim;
    const int64_t at = line / call.group;
    const int64_t first = call.first ? call.first[batch * call.rows + at] : 0;
    for (int64_t i = 0; i < call.sinks; ++i) {
      const int64_t position = start + i, fresh = position - past;
      if (position < 0 || position >= call.length || (fresh < 0 && position < first)) continue;
      if (fresh >= 0 && call.tree) {
        if (!call.tree[((call.trees > 1 ? batch : 0) * call.rows + at) * call.rows + fresh]) continue;
      } else if (fresh > at) {
        continue;
      }
      const int64_t index = (i * call.batch + batch) * call.kv_heads + head;
      load_floats(call.k_sink, call.type, index * call.k.dim, call.k.dim, row);
      const float s = dot(query, row, call.k.dim) * factor;
      const float peak = s > to[0] ? s : to[0], shrink = to[0] == LOWEST ? 0.0f : power(to[0] - peak);
      const float p = power(s - peak);
      load_floats(call.v_sink, call.type, index * call.v.dim, call.v.dim, row);
      for (int64_t d = 0; d < call.v.dim; ++d) to[2 + d] = to[2 + d] * shrink + p * row[d];
      to[1] = to[1] * shrink + p + s * 0.0f;
      to[0] = peak;
    }
  }
}

// A line that sees nothing is zero.
void combine_partials(const float* partial, int64_t count, int64_t stride, int64_t dim, int type, void* out, int64_t at) {
  float peak = LOWEST, total = 0.0f, bad = 0.0f, sums[ATTENTION_DIM];
  for (int64_t i = 0; i < count; ++i) {
    const float* from = partial + i * stride;
    peak = from[0] > peak ? from[0] : peak;
    bad += from[1] * 0.0f;
  }
  for (int64_t d = 0; d < dim; ++d) sums[d] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float* from = partial + i * stride;
    if (from[0] == LOWEST) continue;
    const float share = power(from[0] - peak);
    total += from[1] * share;
    for (int64_t d = 0; d < dim; ++d) sums[d] += from[2 + d] * share;
  }
  const float divisor = total > 0.0f ? total : 1.0f;
  for (int64_t d = 0; d < dim; ++d) sums[d] = sums[d] / divisor + bad;
  store_floats(sums, dim, type, out, at);
}
