// SPDX-License-Identifier: Apache-2.0
#include "attention_plan.h"

#include <algorithm>

namespace specdec::attention {
namespace {

constexpr int64_t kUnitRows = 256;        // packed rows that stay in the second-level cache with a tile
constexpr int64_t kSplitPositions = 512;  // of the prefix in one split, at least
constexpr int64_t kUnitsPerThread = 2;    // with all their splits, at least
// Threads are woken only for work that outlasts the waking: multiplications of queries with keys and of
// weights with values, a request counting as some positions more, and a node as some rows more.
constexpr int64_t kWorthWaking = 1 << 20, kRequestPositions = 16, kNodeRows = 8;

int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

}  // namespace

Plan::Plan(const AttentionArgs& args, int threads)
    : args_(args),
      group_(args.heads > 0 ? args.query_heads / args.heads : 0),
      requests_(args.requests),
      depths_(args.nodes, 0) {
  int64_t begin = 0, splits = 0;
  double work = 0;
  for (int64_t b = 0; b < args.requests; ++b) {
    plan_request(b, begin);
    const Request& r = requests_[b];
    begin = r.begin + r.nodes;
    if (r.nodes == 0) continue;
    work += static_cast<double>(r.prefix + kRequestPositions) * (r.nodes * group_ + kNodeRows);
    splits += r.splits;
  }
  if (group_ == 0) return;
  if (work * args.heads * (args.head + args.value_size) >= kWorthWaking) threads_ = std::max(threads, 1);
  const int64_t wanted =
      std::max<int64_t>(ceil_div(kUnitsPerThread * threads_, std::max<int64_t>(splits, 1)), 1);
  const int64_t heads_in_place = std::clamp<int64_t>(args.heads / wanted, 1, kMaxHeads);
  for (int64_t b = 0; b < args.requests; ++b) plan_units(b, heads_in_place);
}

void Plan::plan_request(int64_t b, int64_t begin) {
  const int64_t most = std::max<int64_t>(std::min(args_.max_prefix, args_.table_width * args_.page_size), 0);
  Request& r = requests_[b];
  // Offsets out of order give empty requests, never rows of two.
  r.begin = std::clamp<int64_t>(args_.cu_nodes[b], begin, args_.nodes);
  r.nodes = std::clamp<int64_t>(args_.cu_nodes[b + 1], r.begin, args_.nodes) - r.begin;
  r.prefix = std::clamp<int64_t>(args_.prefix_lens[b], 0, most);
  const int64_t tiles = ceil_div(r.prefix, kTile);
  const int64_t splits = std::clamp<int64_t>(ceil_div(r.prefix, kSplitPositions), 1, kMaxSplits);
  r.split_tiles = std::max<int64_t>(ceil_div(tiles, splits), 1);
  r.splits = ceil_div(tiles, r.split_tiles);
  for (int64_t i = 0; i < r.nodes; ++i) {
    const int64_t parent = parent_of(r, i);
    depths_[r.begin + i] = parent < 0 ? 0 : depths_[r.begin + parent] + 1;
  }
  most_nodes_ = std::max(most_nodes_, r.nodes);
  const int64_t unit_nodes = std::max<int64_t>(kUnitRows / std::max<int64_t>(group_, 1), 1);
  r.unit_nodes = ceil_div(r.nodes, std::max<int64_t>(ceil_div(r.nodes, unit_nodes), 1));
}

void Plan::plan_units(int64_t b, int64_t heads_in_place) {
  const Request& r = requests_[b];
  const int64_t step = r.unit_nodes * group_ > kInPlaceRows ? 1 : heads_in_place;
  for (int64_t head = 0; head < args_.heads; head += step)
    for (int64_t node = 0; node < r.nodes; node += r.unit_nodes) {
      const Unit unit{b, head, std::min(step, args_.heads - head), node,
                      std::min(r.unit_nodes, r.nodes - node)};
      any_packed_ |= packed(unit);
      most_rows_ = std::max(most_rows_, packed(unit) ? rows_of(unit) : unit.heads * kInPlaceRows);
      units_.push_back(unit);
    }
}

int64_t Plan::parent_of(const Request& r, int64_t node) const {
  const int64_t parent = args_.parents[r.begin + node];
  return parent >= 0 && parent < node ? parent : -1;
}

int64_t Plan::first_visible(const Request& r, int64_t node) const {
  if (args_.window == 0) return 0;
  return std::clamp<int64_t>(r.prefix + depth_of(r, node) - args_.window + 1, 0, r.prefix);
}

const void* Plan::query(const Unit& unit, int64_t head, int64_t node, int64_t in_group) const {
  const int64_t row = request_of(unit).begin + unit.first_node + node;
  return row_of(*args_.query, row, head * group_ + in_group);
}

Scoring Plan::scoring(float key_scale) const {
  if (args_.softcap > 0) return {args_.scale * key_scale / args_.softcap, args_.softcap * kLog2E};
  return {args_.scale * key_scale * kLog2E, 0};
}

}  // namespace specdec::attention
