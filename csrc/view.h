// SPDX-License-Identifier: Apache-2.0
// Views of the caller's memory: pointers, sizes and strides in elements. Nothing here owns anything.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>

#include "specdec.h"

namespace specdec {

using DType = specdec_dtype;

inline constexpr int64_t bytes_of(DType dtype) {
  return dtype == SPECDEC_FLOAT32 ? 4 : dtype == SPECDEC_BFLOAT16 || dtype == SPECDEC_FLOAT16 ? 2 : 1;
}

// Bytes from an address, which may be null where nothing lies.
inline const void* offset(const void* data, int64_t bytes) {
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes));
}

inline constexpr float kInf = std::numeric_limits<float>::infinity();

class RowEdits;

// One row of scores over the vocabulary.
struct Row {
  const void* data = nullptr;
  DType dtype = SPECDEC_FLOAT32;
  int64_t size = 0;                   // entries of the row as stored
  int64_t vocab = 0;                  // entries as seen: `size`, or the target's vocabulary under `columns`
  const uint32_t* bitmask = nullptr;  // bit set = allowed; null = all
  std::shared_ptr<const RowEdits> edits;  // made where scores are read, before the bitmask; null = none
  const int32_t* columns = nullptr;       // entry of the row for each token, -1 = none; null = identity

  bool present() const { return data != nullptr; }
};

// Row r of a matrix.
inline Row row_of(const specdec_rows& rows, int64_t r) {
  const int64_t at = rows.group > 0
                         ? (r / rows.group) * rows.group_stride + (r % rows.group) * rows.row_stride
                         : r * rows.row_stride;
  Row out;
  out.data = offset(rows.data, at * bytes_of(rows.dtype));
  out.dtype = rows.dtype;
  out.size = out.vocab = rows.size;
  return out;
}

}  // namespace specdec
