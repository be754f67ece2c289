// SPDX-License-Identifier: Apache-2.0
// The rows of a request, and its kept path: the root and the accepted nodes, as verification left it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "specdec.h"

namespace specdec {

// First row of request b, inside [0, rows] whatever the offsets hold.
inline int64_t first_row_of(const int32_t* cu_nodes, int64_t b, int64_t rows) {
  return std::clamp<int64_t>(cu_nodes[b], 0, rows);
}

inline const int32_t* path_of(const specdec_paths& paths, int64_t b) { return paths.nodes + b * paths.width; }

inline int64_t start_of(const specdec_paths& paths, int64_t b) {
  return first_row_of(paths.cu_nodes, b, paths.rows);
}

// Nodes kept: entries up to the first that is not above its predecessor or is no node of the request.
inline int64_t kept_of(const specdec_paths& paths, int64_t b) {
  const int64_t count = start_of(paths, b + 1) - start_of(paths, b);
  const int32_t* path = path_of(paths, b);
  int64_t j = 0;
  for (int64_t last = -1; j < paths.width && path[j] > last && path[j] < count; ++j) last = path[j];
  return j;
}

}  // namespace specdec
