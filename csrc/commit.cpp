// SPDX-License-Identifier: Apache-2.0
#include "commit.h"

#include <cstring>
#include <limits>
#include <vector>

#include "team.h"

namespace specdec {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;  // what a thread claims at a time

struct Place {
  int64_t page = -1;  // -1: outside the request's table
  int64_t offset = 0;
};

// A row to move, the same in every cache. `node` is the source among new rows, `from` in the cache.
struct Move {
  int64_t node;
  Place from, to;
};

Place place_of(const specdec_commit_args& a, int64_t b, int64_t slot) {
  const int64_t index = slot / a.page_size;
  if (slot < 0 || index >= a.table_width) return {};
  return {a.block_table[b * a.table_width + index], slot % a.page_size};
}

int32_t saturated(int64_t value) {
  return static_cast<int32_t>(std::min<int64_t>(value, std::numeric_limits<int32_t>::max()));
}

// Moves of one request, ascending. A row never lands on one that has yet to leave: path[j] >= j.
void plan_moves(const specdec_commit_args& a, int64_t b, std::vector<Move>& moves) {
  const int64_t prefix = a.prefix_lens[b];
  const int64_t kept = prefix < 0 ? 0 : kept_of(*a.paths, b);
  const int64_t length = std::max<int64_t>(prefix, 0) + kept;
  a.out_lengths[b] = saturated(length);
  a.out_pages_kept[b] = saturated((length + a.page_size - 1) / a.page_size);
  for (int64_t j = 0; j < kept; ++j) {
    const int64_t node = path_of(*a.paths, b)[j];
    if (!a.new_rows && node == j) continue;
    const Place to = place_of(a, b, prefix + j);
    const Place from = a.new_rows ? Place{} : place_of(a, b, prefix + node);
    if (to.page >= 0 && (a.new_rows || from.page >= 0))
      moves.push_back({start_of(*a.paths, b) + node, from, to});
  }
}

char* row_of(const specdec_cache& cache, const Place& place) {
  return static_cast<char*>(cache.data) + place.page * cache.page_stride + place.offset * cache.slot_stride;
}

void move_rows(const specdec_cache& cache, const specdec_new_rows* fresh, const Move* move, const Move* end) {
  if (cache.row_bytes == 0) return;
  for (; move != end; ++move) {
    if (move->to.page >= cache.pages || move->from.page >= cache.pages) continue;
    const char* from = fresh ? static_cast<const char*>(fresh->data) + move->node * fresh->row_stride
                             : row_of(cache, move->from);
    char* to = row_of(cache, move->to);
    const int64_t head_stride = fresh ? fresh->head_stride : cache.head_stride;
    for (int64_t head = 0; head < cache.heads; ++head)
      std::memmove(to + head * cache.head_stride, from + head * head_stride, cache.row_bytes);
  }
}

}  // namespace

void commit_kv(const specdec_commit_args& a, int threads) {
  const int64_t requests = a.paths->requests;
  std::vector<Move> moves;
  std::vector<int64_t> first(requests + 1, 0);
  for (int64_t b = 0; b < requests; ++b) {
    plan_moves(a, b, moves);
    first[b + 1] = static_cast<int64_t>(moves.size());
  }
  if (moves.empty()) return;

  int64_t bytes = 0;
  for (int64_t c = 0; c < a.cache_count; ++c) bytes += a.caches[c].heads * a.caches[c].row_bytes;
  bytes *= static_cast<int64_t>(moves.size());
  const int64_t items = a.cache_count * requests;
  const int64_t grain = std::max<int64_t>(1, items * kGrainBytes / std::max<int64_t>(bytes, 1));
  Team team(bytes <= kGrainBytes ? 1 : threads);
  team.items(items, grain, [&](Worker&, int64_t item) {
    const int64_t c = item / requests, b = item % requests;
    move_rows(a.caches[c], a.new_rows ? a.new_rows + c : nullptr, moves.data() + first[b],
              moves.data() + first[b + 1]);
  });
}

}  // namespace specdec
