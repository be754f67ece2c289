// SPDX-License-Identifier: Apache-2.0
// Views of the caller's memory: pointers, sizes and strides in elements. Nothing here owns anything.
#pragma once

#include <cstdint>
#include <limits>

namespace specdec {

// The last two only in key and value caches.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3, kFloat8 = 4 };

inline constexpr int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kBFloat16 || dtype == DType::kFloat16 ? 2 : 1;
}

inline constexpr float kInf = std::numeric_limits<float>::infinity();

// One row of scores over the vocabulary.
struct Row {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t size = 0;                   // entries of the row as stored
  int64_t vocab = 0;                  // entries as seen: `size`, or the target's vocabulary under `columns`
  const uint32_t* bitmask = nullptr;  // bit set = allowed; null = all
  const int32_t* columns = nullptr;   // entry of the row for each token, -1 = none; null = identity

  bool present() const { return data != nullptr; }
};

// Rows of a [R, V] matrix, or of a [G, N, V] one seen as [G * N, V].
struct Rows {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t count = 0;
  int64_t size = 0;          // V
  int64_t group = 1;         // N
  int64_t group_stride = 0;  // elements between groups
  int64_t row_stride = 0;    // elements between rows of a group

  Row row(int64_t r) const {
    Row out;
    out.data = static_cast<const char*>(data) +
               ((r / group) * group_stride + (r % group) * row_stride) * bytes_of(dtype);
    out.dtype = dtype;
    out.size = out.vocab = size;
    return out;
  }
};

// A value per request: a [B] array, or one number for all.
struct PerRequest {
  const double* values = nullptr;
  double value = 0;
  double operator[](int64_t b) const { return values ? values[b] : value; }
};

}  // namespace specdec
