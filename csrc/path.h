// SPDX-License-Identifier: Apache-2.0
// The rows of a request, and its kept path: the root and the accepted nodes, as verification left it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace specdec {

// First row of request b, inside [0, rows] whatever the offsets hold.
inline int64_t first_row_of(const int32_t* cu_nodes, int64_t b, int64_t rows) {
  return std::clamp<int64_t>(cu_nodes[b], 0, rows);
}

struct Paths {
  const int32_t* nodes = nullptr;  // [B, width], index within the request, -1 beyond the end
  int64_t width = 0;
  const int32_t* cu_nodes = nullptr;  // [B + 1]
  int64_t rows = 0;                   // R
  int64_t requests = 0;               // B

  const int32_t* of(int64_t b) const { return nodes + b * width; }

  int64_t start(int64_t b) const { return first_row_of(cu_nodes, b, rows); }

  // Nodes kept: entries up to the first that is not above its predecessor or is no node of the request.
  int64_t kept(int64_t b) const {
    const int64_t count = start(b + 1) - start(b);
    int64_t j = 0;
    for (int64_t last = -1; j < width && of(b)[j] > last && of(b)[j] < count; ++j) last = of(b)[j];
    return j;
  }
};

}  // namespace specdec
