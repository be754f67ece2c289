// SPDX-License-Identifier: Apache-2.0
// Attention of the nodes of draft trees over a paged cache: every node sees the prefix, its ancestors and
// itself.
#pragma once

#include <cstdint>

#include "view.h"

namespace specdec {

using AttentionArgs = specdec_attention_args;

inline const void* row_of(const specdec_head_rows& rows, int64_t r, int64_t head) {
  return offset(rows.data, (r * rows.row_stride + head * rows.head_stride) * bytes_of(rows.dtype));
}

inline const void* row_of(const specdec_head_cache& cache, int64_t page, int64_t slot, int64_t head) {
  const int64_t at = page * cache.page_stride + slot * cache.slot_stride + head * cache.head_stride;
  return offset(cache.data, at * bytes_of(cache.dtype));
}

inline float scale_of(const specdec_head_cache& cache, int64_t head) {
  return cache.scales ? cache.scales[head] : cache.scale;
}

// The page that an entry of the block table names, -1 where there is none.
inline int64_t page_at(const AttentionArgs& args, int64_t request, int64_t index) {
  if (index >= args.table_width) return -1;
  const int64_t page = args.block_table[request * args.table_width + index];
  return page >= 0 && page < args.pages ? page : -1;
}

void tree_attention(const AttentionArgs& args, int threads);

}  // namespace specdec
