// SPDX-License-Identifier: Apache-2.0
// Attention of the nodes of draft trees over a paged cache: every node sees the prefix, its ancestors and
// itself.
#pragma once

#include <cstdint>

#include "view.h"

namespace specdec {

// Rows [R, heads, size] of one dtype; strides in elements.
struct HeadRows {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0, head_stride = 0;

  const void* row(int64_t r, int64_t head) const {
    return static_cast<const char*>(data) + (r * row_stride + head * head_stride) * bytes_of(dtype);
  }
};

// A paged cache, whichever way its pages are laid out.
struct HeadCache {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t page_stride = 0, slot_stride = 0, head_stride = 0;
  const float* scales = nullptr;  // per head; null = `scale` for all
  float scale = 1;

  const void* row(int64_t page, int64_t slot, int64_t head) const {
    const int64_t at = page * page_stride + slot * slot_stride + head * head_stride;
    return static_cast<const char*>(data) + at * bytes_of(dtype);
  }
  float scale_of(int64_t head) const { return scales ? scales[head] : scale; }
};

struct AttentionArgs {
  HeadRows query, new_key, new_value;  // new_*: data null = the tree's rows are in the cache
  HeadCache key, value;
  int64_t rows = 0, query_heads = 0, heads = 0;  // heads: of the cache
  int64_t head = 0, value_size = 0;              // elements of a key row, of a value row

  const int32_t* parents = nullptr;
  const int32_t* cu_nodes = nullptr;
  int64_t requests = 0;

  const int32_t* block_table = nullptr;  // [requests, table_width]
  int64_t table_width = 0, pages = 0, page_size = 1;
  const int32_t* prefix_lens = nullptr;
  int64_t max_prefix = 0;

  float scale = 1, softcap = 0;  // softcap 0 = none
  int64_t window = 0;            // 0 = none
  const float* sinks = nullptr;  // per query head

  bool deterministic = false;  // a row's arithmetic is the same whatever tree its node is in

  void* out = nullptr;  // [rows, query_heads, value_size] of the query's dtype
  float* out_lse = nullptr;

  // The page that an entry of the block table names, -1 where there is none.
  int64_t page_at(int64_t request, int64_t index) const {
    if (index >= table_width) return -1;
    const int64_t page = block_table[request * table_width + index];
    return page >= 0 && page < pages ? page : -1;
  }
};

void tree_attention(const AttentionArgs& args, int threads);

}  // namespace specdec
