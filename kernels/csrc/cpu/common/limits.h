// Limits and constants that several families share.
#pragma once
#include <cstdint>

namespace dfq {

constexpr int64_t MAX_K = 1 << 19;        // inner size of a product: 2^19 products of at most 15 * 255 fit into 31 bits
constexpr int64_t MAX_HEAD_DIM = 512;     // values of a head: sums of its digits times codes stay exact in float32
constexpr float LOG2_E = 1.44269504f;     // softmax is computed in base 2
constexpr float ROUND_MAGIC = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer

}  // namespace dfq
