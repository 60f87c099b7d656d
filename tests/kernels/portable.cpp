// C functions on fixed inputs, odd shapes included, one line each with a checksum of its outputs: codes, integer
// products and all else that is the same bits with every instruction set. Products with float activations are compared
// with those of the scalar code in this process, whose checksum is printed. So all instruction sets print the same
// lines on all processors; `make emulate` compares them.
//   portable [isa [best]]: numbers of dfq_abi.h, 0 (scalar) by default. Ends with 2 where library or processor lack
//   isa, with 3 where the library did not choose `best` by itself, with 1 where a function fails or a product is too
//   far off.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "dfq_abi.h"

namespace {

// Arguments by name, as in call(dfq_pack, {.codes = ..., .n = ...}).
template <typename Args>
int call(int (*function)(const Args*), const Args& args) {
  return function(&args);
}

uint64_t state = 88172645463325252ull;

uint32_t draw() {  // xorshift64*
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return uint32_t((state * 2685821657736338717ull) >> 32);
}

template <typename T>
std::vector<T> integers(int64_t count, int64_t low, int64_t high) {
  std::vector<T> found(count);
  for (T& value : found) value = T(low + int64_t(draw() % uint64_t(high - low + 1)));
  return found;
}

std::vector<float> floats(int64_t count, float size = 1.0f) {
  std::vector<float> found(count);
  for (float& value : found) value = size * (float(draw() >> 8) / 8388608.0f - 1.0f);
  return found;
}

std::vector<uint16_t> bfloats(int64_t count, float size = 1.0f) {
  std::vector<uint16_t> found(count);
  const std::vector<float> exact = floats(count, size);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &exact[i], 4);
    found[i] = uint16_t(bits >> 16);
  }
  return found;
}

uint64_t mixed(uint64_t sum, const void* data, size_t size) {  // FNV-1a
  for (size_t i = 0; i < size; ++i) sum = (sum ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211ull;
  return sum;
}

template <typename... Vectors>
void report(const char* name, int status, const Vectors&... outputs) {
  if (status != DFQ_OK) {
    std::fprintf(stderr, "%s: code %d\n", name, status);
    std::exit(1);
  }
  uint64_t sum = 14695981039346656037ull;
  ((sum = mixed(sum, outputs.data(), outputs.size() * sizeof(outputs[0]))), ...);
  std::printf("%s %016llx\n", name, static_cast<unsigned long long>(sum));
}

struct Codes {  // of rows
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> zero;
  Codes(int64_t m, int64_t k) : q(m * k), scale(m), zero(m) {}
};

int wanted_isa = DFQ_SCALAR;

float value_at(const void* x, int64_t type, int64_t i) {
  if (type == DFQ_FLOAT32) return static_cast<const float*>(x)[i];
  const uint16_t half = static_cast<const uint16_t*>(x)[i];
  if (type == DFQ_FLOAT16) {
    const float size =
        std::ldexp(float(half & 1023) + (half & 0x7c00 ? 1024.0f : 0.0f), std::max(1, half >> 10 & 31) - 25);
    return half & 0x8000 ? -size : size;
  }
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Runs product(out) with the scalar code and with the chosen set, and compares: no further apart than one step of the
// output's type and 1e-5 of `size`, the sum of the sizes of the terms of each output.
template <typename Product>
void compare(const char* name, int64_t type, const std::vector<double>& size, Product product) {
  const int64_t count = int64_t(size.size());
  std::vector<float> plain(count), found(count);  // large enough for each type
  dfq_set_isa(DFQ_SCALAR);
  report(name, product(plain.data()), plain);
  dfq_set_isa(wanted_isa);
  const int status = product(found.data());
  const double unit = type == DFQ_FLOAT32 ? 0.0 : type == DFQ_BFLOAT16 ? 0x1p-7 : 0x1p-10;
  for (int64_t i = 0; i < count; ++i) {
    const double a = value_at(plain.data(), type, i), b = value_at(found.data(), type, i);
    if (status == DFQ_OK && std::fabs(a - b) <= unit * 1.01 * std::fabs(a) + 1e-5 * size[i]) continue;
    std::fprintf(stderr, "%s: output %lld is %g, with the scalar code %g\n", name, static_cast<long long>(i), b, a);
    std::exit(1);
  }
}

std::vector<uint16_t> halfs(int64_t count) {  // float16 of sizes 2^-5 to 2
  std::vector<uint16_t> found = integers<uint16_t>(count, 0x2800, 0x3fff);
  for (uint16_t& value : found) value = uint16_t(value | (draw() & 0x8000));
  return found;
}

struct Weights {  // in both layouts
  int64_t n, k, group, groups, n16;
  bool symmetric;
  std::vector<uint8_t> packed, zero, tiles, wide_zero;
  std::vector<uint16_t> scale, wide_scale;
  std::vector<int32_t> sums;
  const uint8_t* z() const { return symmetric ? nullptr : zero.data(); }
  const uint8_t* wide_z() const { return symmetric ? nullptr : wide_zero.data(); }
};

// Per output: sum of |x| (|w| + 8 |scale|), what a product that adds up codes less 8 can go through.
std::vector<double> sizes(const Weights& w, const void* x, int64_t type, int64_t m, int64_t threads) {
  std::vector<float> dense(w.n * w.k);
  call(dfq_dequantize, {.packed = w.packed.data(),
                        .scale = w.scale.data(),
                        .zero = w.z(),
                        .n = w.n,
                        .k = w.k,
                        .bits = 4,
                        .group = w.group,
                        .w = dense.data(),
                        .threads = threads});
  std::vector<double> size(m * w.n);
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t n = 0; n < w.n; ++n) {
      for (int64_t k = 0; k < w.k; ++k) {
        const float scale = value_at(w.scale.data(), DFQ_BFLOAT16, n * w.groups + (w.group ? k / w.group : 0));
        size[row * w.n + n] +=
            std::fabs(value_at(x, type, row * w.k + k)) * (std::fabs(dense[n * w.k + k]) + 8.0 * std::fabs(scale));
      }
    }
  }
  return size;
}

Weights weights(int64_t n, int64_t k, int64_t group, bool symmetric, int64_t threads) {
  Weights w = {n,  k,  group, group ? (k + group - 1) / group : 1, (n + 15) / 16 * 16, symmetric, {}, {}, {}, {},
               {}, {}, {}};
  const int64_t bytes = (k + 1) / 2, k8 = (k + 7) / 8 * 8;
  const auto codes = integers<uint8_t>(n * k, 0, 15);
  w.zero = integers<uint8_t>(n * w.groups, 0, 15), w.scale = bfloats(n * w.groups);
  w.wide_zero.assign(w.groups * w.n16, 8), w.wide_scale.assign(w.groups * w.n16, 0);
  for (int64_t i = 0; i < n * w.groups; ++i) {
    w.wide_zero[i % w.groups * w.n16 + i / w.groups] = w.zero[i];
    w.wide_scale[i % w.groups * w.n16 + i / w.groups] = w.scale[i];
  }
  std::vector<uint8_t> again(n * k), back(n * bytes);
  std::vector<float> dense(n * k);
  w.packed.resize(n * bytes), w.tiles.resize(w.n16 * k8 / 2), w.sums.resize(w.groups * w.n16);
  report(
      "pack",
      call(dfq_pack, {.codes = codes.data(), .n = n, .k = k, .bits = 4, .packed = w.packed.data(), .threads = threads}),
      w.packed);
  report("unpack",
         call(dfq_unpack,
              {.packed = w.packed.data(), .n = n, .k = k, .bits = 4, .codes = again.data(), .threads = threads}),
         again);
  report("dequantize",
         call(dfq_dequantize, {.packed = w.packed.data(),
                               .scale = w.scale.data(),
                               .zero = w.z(),
                               .n = n,
                               .k = k,
                               .bits = 4,
                               .group = group,
                               .w = dense.data(),
                               .threads = threads}),
         dense);
  report("prepack",
         call(dfq_prepack, {.packed = w.packed.data(),
                            .n = n,
                            .k = k,
                            .group = group,
                            .tiles = w.tiles.data(),
                            .sums = w.sums.data(),
                            .threads = threads}),
         w.tiles, w.sums);
  report("unprepack",
         call(dfq_unprepack, {.tiles = w.tiles.data(), .n = n, .k = k, .packed = back.data(), .threads = threads}),
         back);
  return w;
}

void float_products(const Weights& w, int64_t m, int64_t threads) {
  const auto x = floats(m * w.k), bias = floats(w.n);
  const auto narrow = bfloats(m * w.k), half = halfs(m * w.k);
  compare("w4a16", 0, sizes(w, x.data(), 0, m, threads), [&](void* y) {
    return call(dfq_w4a16_mm, {.x = x.data(),
                               .dtype = 0,
                               .m = m,
                               .n = w.n,
                               .k = w.k,
                               .packed = w.packed.data(),
                               .scale = w.scale.data(),
                               .zero = w.z(),
                               .group = w.group,
                               .out = y,
                               .threads = threads});
  });
  for (int64_t type = 0; type < 3; ++type) {
    const void* const rows = type == 0 ? static_cast<const void*>(x.data()) : type == 1 ? narrow.data() : half.data();
    std::vector<double> size = sizes(w, rows, type, m, threads);
    for (int64_t i = 0; i < m * w.n; ++i) size[i] += std::fabs(bias[i % w.n]);
    compare("tiled_w4a16", type, size, [&](void* y) {
      return call(dfq_tiled_w4a16, {.x = rows,
                                    .dtype = type,
                                    .m = m,
                                    .n = w.n,
                                    .k = w.k,
                                    .tiles = w.tiles.data(),
                                    .scale = w.wide_scale.data(),
                                    .zero = w.wide_z(),
                                    .group = w.group,
                                    .bias = bias.data(),
                                    .out = y,
                                    .threads = threads});
    });
  }
}

// Codes over the whole range of eight and of four bits, with and without zero points.
void integer_products(const Weights& w, int64_t m, int64_t threads) {
  const auto x = floats(m * w.k), bias = floats(w.n);
  std::vector<float> y(m * w.n);
  std::vector<uint16_t> short_y(m * w.n);
  for (int64_t bits = 4; bits <= 8; bits += 4) {
    Codes rows(m, w.k);
    report("quantize",
           call(dfq_quantize_per_token, {.x = x.data(),
                                         .dtype = 0,
                                         .m = m,
                                         .k = w.k,
                                         .bits = bits,
                                         .symmetric = bits == 4,
                                         .clip = 1.0f,
                                         .codes = rows.q.data(),
                                         .scale = rows.scale.data(),
                                         .zero = rows.zero.data(),
                                         .threads = threads}),
           rows.q, rows.scale, rows.zero);
    rows.zero = integers<int32_t>(m, -128, 127);
    report("w4a8",
           call(dfq_w4a8_mm, {.q = rows.q.data(),
                              .x_scale = rows.scale.data(),
                              .x_zero = rows.zero.data(),
                              .m = m,
                              .n = w.n,
                              .k = w.k,
                              .packed = w.packed.data(),
                              .scale = w.scale.data(),
                              .zero = w.z(),
                              .group = w.group,
                              .out = y.data(),
                              .threads = threads}),
           y);
    report("tiled_w4a8",
           call(dfq_tiled_w4a8, {.q = rows.q.data(),
                                 .x_scale = rows.scale.data(),
                                 .x_zero = rows.zero.data(),
                                 .m = m,
                                 .n = w.n,
                                 .k = w.k,
                                 .tiles = w.tiles.data(),
                                 .scale = w.wide_scale.data(),
                                 .zero = w.wide_z(),
                                 .sums = w.sums.data(),
                                 .group = w.group,
                                 .bias = bias.data(),
                                 .dtype = 0,
                                 .out = y.data(),
                                 .threads = threads}),
           y);
    const auto extreme = integers<int8_t>(m * w.k, 0, 1);
    for (int64_t i = 0; i < m * w.k; ++i)
      rows.q[i] = extreme[i] ? int8_t((1 << (bits - 1)) - 1) : int8_t(-(1 << (bits - 1)));
    report("tiled_w4a8",
           call(dfq_tiled_w4a8, {.q = rows.q.data(),
                                 .x_scale = rows.scale.data(),
                                 .x_zero = nullptr,
                                 .m = m,
                                 .n = w.n,
                                 .k = w.k,
                                 .tiles = w.tiles.data(),
                                 .scale = w.wide_scale.data(),
                                 .zero = w.wide_z(),
                                 .sums = nullptr,
                                 .group = w.group,
                                 .bias = nullptr,
                                 .dtype = 1,
                                 .out = short_y.data(),
                                 .threads = threads}),
           short_y);
  }
}

void products(int64_t m, int64_t n, int64_t k, int64_t group, bool symmetric, int64_t threads) {
  const Weights w = weights(n, k, group, symmetric, threads);
  float_products(w, m, threads);
  integer_products(w, m, threads);
}

void transforms(int64_t m, int64_t block, int64_t order, int64_t type, int64_t threads) {
  std::vector<float> base(order * order, 1.0f);  // Paley's matrix of order 12, or 1
  for (int64_t i = 1; i < order; ++i) {
    for (int64_t j = 0; j < order; ++j) {
      const int64_t d = (j - i + 11) % 11;
      base[i * order + j] = j && (d == 0 || d == 1 || d == 3 || d == 4 || d == 5 || d == 9) ? 1.0f : -1.0f;
    }
  }
  const auto x = bfloats(2 * m * block, type ? 1.0f : 1e-3f), up = bfloats(2 * m * block);  // either type finds values
  std::vector<uint16_t> out(2 * m * block);
  report("hadamard",
         call(dfq_hadamard, {.x = x.data(),
                             .dtype = type,
                             .rows = m,
                             .block = block,
                             .base = base.data(),
                             .order = order,
                             .out = out.data(),
                             .threads = threads}),
         out);
  Codes rows(m, block);
  report("hadamard_quantize",
         call(dfq_hadamard_quantize, {.x = x.data(),
                                      .dtype = type,
                                      .m = m,
                                      .k = block,
                                      .base = base.data(),
                                      .order = order,
                                      .block = block,
                                      .bits = 4,
                                      .symmetric = 0,
                                      .clip = 1.0f,
                                      .codes = rows.q.data(),
                                      .scale = rows.scale.data(),
                                      .zero = rows.zero.data(),
                                      .threads = threads}),
         rows.q, rows.scale, rows.zero);
  report("silu",
         call(dfq_silu_mul_hadamard_quantize, {.gate = x.data(),
                                               .up = up.data(),
                                               .dtype = type,
                                               .m = m,
                                               .k = block,
                                               .base = base.data(),
                                               .order = order,
                                               .block = block,
                                               .bits = 8,
                                               .symmetric = 0,
                                               .clip = 1.0f,
                                               .codes = rows.q.data(),
                                               .scale = rows.scale.data(),
                                               .zero = rows.zero.data(),
                                               .threads = threads}),
         rows.q, rows.scale, rows.zero);
  std::vector<uint16_t> residual = up;
  report("rmsnorm",
         call(dfq_rmsnorm_quantize, {.x = x.data(),
                                     .dtype = type,
                                     .m = m,
                                     .k = block,
                                     .residual = residual.data(),
                                     .weight = x.data(),
                                     .epsilon = 1e-5f,
                                     .bits = 8,
                                     .symmetric = 1,
                                     .clip = 0.9f,
                                     .codes = rows.q.data(),
                                     .scale = rows.scale.data(),
                                     .zero = rows.zero.data(),
                                     .threads = threads}),
         rows.q, rows.scale, rows.zero, residual);
}

// The cache of two sequences with two exact positions, its queries in groups of `group` heads.
void cache(int64_t rows, int64_t length, int64_t dim, int64_t bits, int64_t group, int64_t type, int64_t threads) {
  const int64_t batch = 2, kv = 2, heads = kv * group, bytes = (dim * bits + 7) / 8, places = length * batch * kv;
  const int64_t sinks = std::min<int64_t>(2, length - rows), size = type ? 2 : 4, all = batch * rows;
  const float one = 1.0f;
  const auto wide = floats((all * (heads + 2 * kv) + 2 * sinks * batch * kv) * dim);
  const auto narrow = bfloats((all * (heads + 2 * kv) + 2 * sinks * batch * kv) * dim);
  const char* const data =
      type ? reinterpret_cast<const char*>(narrow.data()) : reinterpret_cast<const char*>(wide.data());
  const auto part = [&](int64_t vectors) { return static_cast<const void*>(data + vectors * dim * size); };
  const void *const query = part(0), *const key = part(all * heads), *const value = part(all * (heads + kv));
  const void *const k_sink = part(all * (heads + 2 * kv)), *const v_sink =
                                                               part(all * (heads + 2 * kv) + sinks * batch * kv);
  auto k = integers<uint8_t>(places * bytes, 0, 255), v = integers<uint8_t>(places * bytes, 0, 255);
  const int64_t top = (1 << bits) - 1;
  auto k_zero = integers<uint8_t>(places, 0, top), v_zero = integers<uint8_t>(places, 0, top);
  auto k_scale = integers<uint16_t>(places, 0x2800, 0x2c00), v_scale = integers<uint16_t>(places, 0x2c00, 0x3000);
  const auto shift = floats(kv * dim);
  report("kv_append",
         call(dfq_kv_append, {.key = key,
                              .value = value,
                              .dtype = type,
                              .batch = batch,
                              .rows = rows,
                              .heads = kv,
                              .k_dim = dim,
                              .v_dim = dim,
                              .k_packed = k.data(),
                              .k_scale = k_scale.data(),
                              .k_zero = k_zero.data(),
                              .v_packed = v.data(),
                              .v_scale = v_scale.data(),
                              .v_zero = v_zero.data(),
                              .position = length - rows,
                              .bits = bits,
                              .symmetric = 0,
                              .clip = 1.0f,
                              .base = &one,
                              .order = 1,
                              .block = 8,
                              .shift = shift.data(),
                              .threads = threads}),
         k, k_scale, k_zero, v, v_scale, v_zero);
  std::vector<char> out(all * heads * dim * size);
  for (int64_t exact = 0; exact <= sinks; exact += 2) {
    report("kv_attention",
           call(dfq_kv_attention, {.query = query,
                                   .dtype = type,
                                   .batch = batch,
                                   .rows = rows,
                                   .heads = heads,
                                   .kv_heads = kv,
                                   .k_dim = dim,
                                   .v_dim = dim,
                                   .k_packed = k.data(),
                                   .k_scale = k_scale.data(),
                                   .k_zero = k_zero.data(),
                                   .v_packed = v.data(),
                                   .v_scale = v_scale.data(),
                                   .v_zero = v_zero.data(),
                                   .length = length,
                                   .bits = bits,
                                   .scaling = 0.2f,
                                   .base = &one,
                                   .order = 1,
                                   .block = 8,
                                   .first = nullptr,
                                   .tree = nullptr,
                                   .trees = 0,
                                   .k_sink = exact ? k_sink : nullptr,
                                   .v_sink = exact ? v_sink : nullptr,
                                   .sinks = exact,
                                   .sink_start = nullptr,
                                   .out = out.data(),
                                   .threads = threads}),
           out);
  }
  if (type == 0) {  // of bfloat16, AVX-512 rounds what the others do not
    const std::vector<double> weighted(all * heads * dim, 1.0);  // sums of weights that add up to 1
    compare("prompt_attention", type, weighted, [&](void* y) {
      return call(dfq_prompt_attention, {.query = query,
                                         .dtype = type,
                                         .batch = batch,
                                         .rows = rows,
                                         .heads = heads,
                                         .kv_heads = kv,
                                         .k_dim = dim,
                                         .v_dim = dim,
                                         .k_packed = k.data(),
                                         .k_scale = k_scale.data(),
                                         .k_zero = k_zero.data(),
                                         .v_packed = v.data(),
                                         .v_scale = v_scale.data(),
                                         .v_zero = v_zero.data(),
                                         .length = length,
                                         .bits = bits,
                                         .scaling = 0.2f,
                                         .window = length > 8 ? length - 3 : 0,
                                         .k_sink = k_sink,
                                         .v_sink = v_sink,
                                         .sinks = sinks,
                                         .out = y,
                                         .threads = threads});
    });
  }
  std::vector<uint16_t> values(places * dim);
  report("kv_dequantize",
         call(dfq_kv_dequantize, {.packed = k.data(),
                                  .scale = k_scale.data(),
                                  .zero = k_zero.data(),
                                  .rows = places,
                                  .width = dim,
                                  .bits = bits,
                                  .dtype = 1,
                                  .out = values.data(),
                                  .threads = threads}),
         values);
  report("kv_quantize",
         call(dfq_kv_quantize, {.x = key,
                                .dtype = type,
                                .rows = all * kv,
                                .width = dim,
                                .bits = bits,
                                .symmetric = 0,
                                .clip = 1.0f,
                                .packed = k.data(),
                                .scale = k_scale.data(),
                                .zero = k_zero.data(),
                                .threads = threads}),
         k, k_scale, k_zero);
}

// A self block, a cross block and a block that reads two inputs, or a cross block that joins a stream, three slots of a tree, and the dense product that its guesses come from.
void draft(int64_t type, int64_t threads) {
  const int64_t hidden = 40, heads = 4, kv = 2, dim = 12, mlp = 56, rows = 3, capacity = 9, size = type ? 2 : 4;
  std::vector<std::vector<float>> wide;
  std::vector<std::vector<uint16_t>> narrow;
  const auto linear = [&](int64_t n, int64_t k) -> dfq_draft_linear {
    wide.push_back(floats(n * k, 0.2f)), narrow.push_back(bfloats(n * k, 0.2f));
    const void* const data = type ? static_cast<const void*>(narrow.back().data()) : wide.back().data();
    const float* const bias = n % 3 ? wide.back().data() : nullptr;  // most have one
    return {data, nullptr, nullptr, bias, type, n, k, 0};
  };
  const auto gains = floats(hidden), slopes = floats(heads);
  const auto block = [&](bool cross, bool side, bool joins = false) -> dfq_draft_block {
    const int64_t read = side ? 2 * hidden : hidden;
    const float* const norm = cross ? gains.data() : nullptr;
    return {gains.data(), side ? gains.data() : nullptr, gains.data(), norm, norm, cross ? slopes.data() : nullptr,
            joins ? norm : nullptr, 0.5, 0.7, cross, joins, linear(heads * dim, read),
            linear(kv * dim, read), linear(kv * dim, read),
            linear(hidden, heads * dim), linear(mlp, hidden), linear(mlp, hidden), linear(hidden, mlp)};
  };
  const dfq_draft_block blocks[5] = {block(false, false), block(true, false), block(false, true), block(false, false),
                                     block(true, false, true)};
  const dfq_draft models[2] = {{blocks, gains.data(), type, 3, hidden, heads, kv, dim, mlp, 1e-5},
                               {blocks + 3, nullptr, type, 2, hidden, heads, kv, dim, mlp, 1e-5}};
  std::vector<uint8_t> k[3], v[3];
  dfq_draft_buffer buffers[3];
  for (int i = 0; i < 3; ++i) {
    k[i].resize(kv * capacity * dim * size), v[i].resize(kv * capacity * dim * size);
    buffers[i] = {k[i].data(), v[i].data(), capacity};
  }
  const auto x = floats(rows * hidden), angles = floats(8 * dim);
  const auto narrow_x = bfloats(rows * hidden);
  const void* const in = type ? static_cast<const void*>(narrow_x.data()) : x.data();
  const auto wide_stream = floats(rows * hidden);
  const auto narrow_stream = bfloats(rows * hidden);
  const void* const stream = type ? static_cast<const void*>(narrow_stream.data()) : wide_stream.data();
  const int64_t positions[3] = {4, 5, 5}, places[2] = {3, 4};
  const uint8_t tree[9] = {1, 0, 0, 1, 1, 0, 1, 0, 1}, seen[6] = {1, 0, 1, 1, 1, 0};
  std::vector<uint8_t> out(rows * hidden * size), y(rows * mlp * size);
  for (const dfq_draft& model : models) {
    report("draft",
           call(dfq_draft_pass, {.draft = &model,
                                 .buffers = buffers,
                                 .x = in,
                                 .stream = stream,
                                 .rows = rows,
                                 .fresh = in,
                                 .news = 2,
                                 .cos = angles.data(),
                                 .sin = angles.data(),
                                 .positions = positions,
                                 .at = 4,
                                 .verified = 4,
                                 .tree = tree,
                                 .cross_at = 5,
                                 .features = 4,
                                 .drafted = 2,
                                 .places = places,
                                 .cross_tree = seen,
                                 .out = out.data(),
                                 .threads = threads}),
           out, k[0], v[0], k[1], v[1], k[2], v[2]);
  }
  report("dense",
         call(dfq_dense, {.x = in,
                          .dtype = type,
                          .m = rows,
                          .n = mlp,
                          .k = hidden,
                          .weight = blocks[0].gate.data,
                          .kind = type,
                          .out = y.data(),
                          .threads = threads}),
         y);
  for (const int64_t group : {int64_t(0), int64_t(32)}) {
    if (type && !group) continue;  // AVX-512 multiplies these in bfloat16, in another order
    const auto codes = integers<uint8_t>(mlp * hidden, 0, 255);
    const auto scale = bfloats(mlp * 2);
    report("dense, codes",
           call(dfq_dense, {.x = in,
                            .dtype = type,
                            .m = rows,
                            .n = mlp,
                            .k = hidden,
                            .weight = codes.data(),
                            .kind = DFQ_CODES8,
                            .scale = scale.data(),
                            .group = group,
                            .out = y.data(),
                            .threads = threads}),
           y);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 2 && dfq_isa() != std::atoi(arguments[2])) return 3;
  if (count > 1) wanted_isa = std::atoi(arguments[1]);
  if (dfq_set_isa(wanted_isa) != DFQ_OK) return 2;
  const int64_t groups[4] = {0, 32, 64, 128};
  for (int64_t rows = 1; rows <= 9; ++rows) {  // decode
    products(rows, 17 + 7 * rows, 129 + 24 * rows, groups[rows % 4], rows % 3 == 0, 1);
  }
  for (int64_t threads = 1; threads <= 3; threads += 2) {
    products(1, 33, 70, 0, true, threads);
    products(16, 16, 256, 64, false, threads);
    products(17, 50, 129, 32, false, threads);  // prefill
    products(40, 37, 1100, 0, false, threads);
    products(23, 32, 600, 128, true, threads);
    for (int64_t type = 0; type < 2; ++type) {
      transforms(3, 512, 1, type, threads);
      transforms(2, 12 * 16, 12, type, threads);
      transforms(1, 8, 1, type, threads);
      draft(type, threads);
      cache(1, 40, 24, 4, 2, type, threads);
      cache(9, 300, 64, 4, 1, type, threads);
    }
    cache(2, 131, 128, 8, 3, 1, threads);
    cache(3, 7, 40, 3, 2, 0, threads);
  }
}
