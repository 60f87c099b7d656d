// Every C function on fixed inputs, one line each with a checksum of its outputs: two processors agree where their lines
// do. `make arm` compares the scalar path of a cross-compiled library under emulation with the one of this machine.
//   portable [isa]: 0 scalar (default), 1 avx2, 2 avx512
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "dfq_draft.h"
#include "dfq_kernels.h"
#include "dfq_tiled.h"

namespace {

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

void products(int64_t m, int64_t n, int64_t k, int64_t group, bool symmetric, int64_t threads) {
  const int64_t bytes = (k + 1) / 2, groups = group ? (k + group - 1) / group : 1;
  const int64_t n16 = (n + 15) / 16 * 16, k8 = (k + 7) / 8 * 8;
  const auto codes = integers<uint8_t>(n * k, 0, 15), zero = integers<uint8_t>(n * groups, 0, 15);
  const auto scale = bfloats(n * groups), wide_scale = bfloats(groups * n16);
  const auto wide_zero = integers<uint8_t>(groups * n16, 0, 15);
  const uint8_t *z = symmetric ? nullptr : zero.data(), *wide_z = symmetric ? nullptr : wide_zero.data();
  std::vector<uint8_t> packed(n * bytes), again(n * k), tiles(n16 * k8 / 2), back(n * bytes);
  report("pack", dfq_pack(codes.data(), n, k, 4, packed.data(), threads), packed);
  report("unpack", dfq_unpack(packed.data(), n, k, 4, again.data(), threads), again);
  std::vector<float> dense(n * k), y(m * n);
  report("dequantize", dfq_dequantize(packed.data(), scale.data(), z, n, k, 4, group, dense.data(), threads), dense);
  std::vector<int32_t> sums(groups * n16);
  report("prepack", dfq_prepack(packed.data(), n, k, group, tiles.data(), sums.data(), threads), tiles, sums);
  report("unprepack", dfq_unprepack(tiles.data(), n, k, back.data(), threads), back);
  const auto x = floats(m * k);
  const auto half = bfloats(m * k);
  std::vector<uint16_t> short_y(m * n);
  report("w4a16", dfq_w4a16_mm(x.data(), 0, m, n, k, packed.data(), scale.data(), z, group, y.data(), threads), y);
  report("tiled_w4a16", dfq_tiled_w4a16(half.data(), 1, m, n, k, tiles.data(), wide_scale.data(), wide_z, group, nullptr,
                                        short_y.data(), threads), short_y);
  Codes rows(m, k);
  report("quantize", dfq_quantize_per_token(x.data(), 0, m, k, 8, symmetric, 1.0f, rows.q.data(), rows.scale.data(),
                                            rows.zero.data(), threads), rows.q, rows.scale, rows.zero);
  report("w4a8", dfq_w4a8_mm(rows.q.data(), rows.scale.data(), rows.zero.data(), m, n, k, packed.data(), scale.data(), z,
                             group, y.data(), threads), y);
  report("tiled_w4a8", dfq_tiled_w4a8(rows.q.data(), rows.scale.data(), rows.zero.data(), m, n, k, tiles.data(),
                                      wide_scale.data(), wide_z, sums.data(), group, x.data(), 0, y.data(), threads), y);
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
  report("hadamard", dfq_hadamard(x.data(), type, m, block, base.data(), order, out.data(), threads), out);
  Codes rows(m, block);
  report("hadamard_quantize", dfq_hadamard_quantize(x.data(), type, m, block, base.data(), order, block, 4, 0, 1.0f,
                                                    rows.q.data(), rows.scale.data(), rows.zero.data(), threads),
         rows.q, rows.scale, rows.zero);
  report("silu", dfq_silu_mul_hadamard_quantize(x.data(), up.data(), type, m, block, base.data(), order, block, 8, 0, 1.0f,
                                                rows.q.data(), rows.scale.data(), rows.zero.data(), threads),
         rows.q, rows.scale, rows.zero);
  std::vector<uint16_t> residual = up;
  report("rmsnorm", dfq_rmsnorm_quantize(x.data(), type, m, block, residual.data(), x.data(), 1e-5f, 8, 1, 0.9f,
                                         rows.q.data(), rows.scale.data(), rows.zero.data(), threads),
         rows.q, rows.scale, rows.zero, residual);
}

void cache(int64_t rows, int64_t length, int64_t threads) {
  const int64_t batch = 2, heads = 4, kv = 2, dim = 24, bytes = dim / 2, places = length * batch * kv;
  const float one = 1.0f;
  const auto key = bfloats(batch * rows * kv * dim), value = bfloats(batch * rows * kv * dim);
  const auto query = bfloats(batch * rows * heads * dim);
  auto k = integers<uint8_t>(places * bytes, 0, 255), v = integers<uint8_t>(places * bytes, 0, 255);
  auto k_zero = integers<uint8_t>(places, 0, 15), v_zero = integers<uint8_t>(places, 0, 15);
  auto k_scale = integers<uint16_t>(places, 0x2c00, 0x3000), v_scale = integers<uint16_t>(places, 0x2c00, 0x3000);
  report("kv_append", dfq_kv_append(key.data(), value.data(), 1, batch, rows, kv, dim, dim, k.data(), k_scale.data(),
                                    k_zero.data(), v.data(), v_scale.data(), v_zero.data(), length - rows, 4, 0, 1.0f,
                                    &one, 1, 8, threads), k, k_scale, k_zero, v, v_scale, v_zero);
  std::vector<uint16_t> out(batch * rows * heads * dim), wide(places * dim);
  report("kv_attention", dfq_kv_attention(query.data(), 1, batch, rows, heads, kv, dim, dim, k.data(), k_scale.data(),
                                          k_zero.data(), v.data(), v_scale.data(), v_zero.data(), length, 4, 0.2f, &one,
                                          1, 8, nullptr, nullptr, 0, nullptr, nullptr, 0, nullptr, out.data(), threads),
         out);
  report("kv_dequantize", dfq_kv_dequantize(k.data(), k_scale.data(), k_zero.data(), places, dim, 4, 1, wide.data(),
                                            threads), wide);
  report("kv_quantize", dfq_kv_quantize(key.data(), 1, batch * rows * kv, dim, 4, 0, 1.0f, k.data(), k_scale.data(),
                                        k_zero.data(), threads), k, k_scale, k_zero);
}

// A self block and a cross block of a draft, three slots of a tree, and the dense product that its guesses come from.
void draft(int64_t type, int64_t threads) {
  const int64_t hidden = 40, heads = 4, kv = 2, dim = 12, mlp = 56, rows = 3, capacity = 9, size = type ? 2 : 4;
  std::vector<std::vector<float>> wide;
  std::vector<std::vector<uint16_t>> narrow;
  const auto linear = [&](int64_t n, int64_t k) -> dfq_draft_linear {
    wide.push_back(floats(n * k, 0.2f)), narrow.push_back(bfloats(n * k, 0.2f));
    const void* const data = type ? static_cast<const void*>(narrow.back().data()) : wide.back().data();
    return {data, nullptr, nullptr, type, n, k, 0};
  };
  const auto gains = floats(hidden), slopes = floats(heads);
  const auto block = [&](bool cross) -> dfq_draft_block {
    const float* const norm = cross ? gains.data() : nullptr;
    return {gains.data(), gains.data(), norm, norm, cross ? slopes.data() : nullptr, 0.5, 0.7, cross,
            linear(heads * dim, hidden), linear(kv * dim, hidden), linear(kv * dim, hidden),
            linear(hidden, heads * dim), linear(mlp, hidden), linear(mlp, hidden), linear(hidden, mlp)};
  };
  const dfq_draft_block blocks[2] = {block(false), block(true)};
  const dfq_draft model = {blocks, gains.data(), type, 2, hidden, heads, kv, dim, mlp, 1e-5};
  std::vector<uint8_t> k[2], v[2];
  dfq_draft_buffer buffers[2];
  for (int i = 0; i < 2; ++i) {
    k[i].resize(kv * capacity * dim * size), v[i].resize(kv * capacity * dim * size);
    buffers[i] = {k[i].data(), v[i].data(), capacity};
  }
  const auto x = floats(rows * hidden), angles = floats(8 * dim);
  const auto narrow_x = bfloats(rows * hidden);
  const void* const in = type ? static_cast<const void*>(narrow_x.data()) : x.data();
  const int64_t positions[3] = {4, 5, 5}, places[2] = {3, 4};
  const uint8_t tree[9] = {1, 0, 0, 1, 1, 0, 1, 0, 1}, seen[6] = {1, 0, 1, 1, 1, 0};
  std::vector<uint8_t> out(rows * hidden * size), y(rows * mlp * size);
  report("draft", dfq_draft_pass(&model, buffers, in, rows, in, 2, angles.data(), angles.data(), positions, 4, 4, tree, 5,
                                 4, 2, places, seen, out.data(), threads), out, k[0], v[0], k[1], v[1]);
  report("dense", dfq_dense(in, type, rows, mlp, hidden, blocks[0].gate.data, y.data(), threads), y);
}

}  // namespace

int main(int count, char** arguments) {
  if (dfq_set_isa(count > 1 ? std::atoi(arguments[1]) : DFQ_SCALAR) != DFQ_OK) return 2;
  for (int64_t threads = 1; threads <= 3; threads += 2) {
    products(1, 33, 70, 0, true, threads);
    products(5, 16, 256, 64, false, threads);
    products(40, 50, 129, 32, false, threads);
    for (int64_t type = 0; type < 2; ++type) {
      transforms(3, 512, 1, type, threads);
      transforms(2, 12 * 16, 12, type, threads);
      draft(type, threads);
    }
    cache(1, 40, threads);
    cache(9, 300, threads);
  }
}
