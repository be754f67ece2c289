// SPDX-License-Identifier: Apache-2.0
// Kept rows of paged caches move to the slots right after the prefix. Bytes are moved, never read as numbers.
#pragma once

#include <cstdint>

#include "path.h"

namespace specdec {

// One paged cache; strides in bytes. Fields in the order of the table that describes all caches of a call.
struct Cache {
  int64_t address, pages, page_stride, slot_stride, heads, head_stride, row_bytes;
};

// Rows to write instead of those in the cache, one per node of the batch; strides in bytes.
struct NewRows {
  int64_t address, row_stride, head_stride;
};

struct CommitArgs {
  const Cache* caches = nullptr;
  const NewRows* fresh = nullptr;  // one per cache, or null: the rows lie in slots prefix + node
  int64_t cache_count = 0;
  Paths paths;
  const int32_t* block_table = nullptr;  // [B, pages_per_request]
  int64_t pages_per_request = 0;
  const int32_t* prefix_lens = nullptr;  // [B]
  int64_t page_size = 1;
  int32_t* out_lengths = nullptr;     // [B]
  int32_t* out_pages_kept = nullptr;  // [B]
};

void commit_kv(const CommitArgs& args, int threads);

}  // namespace specdec
