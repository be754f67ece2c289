// SPDX-License-Identifier: Apache-2.0
// How a call of tree attention is divided: units of nodes and heads, one for a thread at a time, and splits
// of the prefix. What a row's arithmetic depends on follows from its own request alone.
#pragma once

#include <cstdint>
#include <vector>

#include "attention.h"
#include "attention_kernels.h"

namespace specdec::attention {

inline constexpr float kLog2E = 1.44269504f;
inline constexpr int64_t kMaxSplits = 32;  // of one prefix

struct Request {
  int64_t begin = 0, nodes = 0;  // rows of the batch
  int64_t prefix = 0;
  int64_t splits = 0, split_tiles = 1;
  int64_t unit_nodes = 1;
};

// The nodes of a request that one thread takes, for one head of the cache if their rows are packed, else for
// `heads` of them, whose bytes often are neighbours.
struct Unit {
  int64_t request, head, heads, first_node, nodes;
};

class Plan {
 public:
  Plan(const AttentionArgs& args, int threads);

  const AttentionArgs& args() const { return args_; }
  const std::vector<Request>& requests() const { return requests_; }
  const Request& request_of(const Unit& unit) const { return requests_[unit.request]; }
  const std::vector<Unit>& units() const { return units_; }
  int threads() const { return threads_; }

  int64_t group() const { return group_; }  // query heads of one head of the cache
  int64_t rows_of(const Unit& unit) const { return unit.nodes * group_; }
  bool packed(const Unit& unit) const { return rows_of(unit) > kInPlaceRows; }
  bool any_packed() const { return any_packed_; }
  int64_t most_rows() const { return most_rows_; }    // of a unit; in place, kInPlaceRows for each head
  int64_t most_nodes() const { return most_nodes_; }  // of a request

  // -1 = none.
  int64_t parent_of(const Request& r, int64_t node) const;
  int64_t depth_of(const Request& r, int64_t node) const { return depths_[r.begin + node]; }
  // The position from which on a node sees the prefix.
  int64_t first_visible(const Request& r, int64_t node) const;
  const void* query(const Unit& unit, int64_t head, int64_t node, int64_t in_group) const;
  Scoring scoring(float key_scale) const;

 private:
  void plan_request(int64_t b, int64_t begin);
  void plan_units(int64_t b, int64_t heads_in_place);

  const AttentionArgs& args_;
  const int64_t group_;
  int threads_ = 1;
  bool any_packed_ = false;
  int64_t most_rows_ = 0, most_nodes_ = 0;
  std::vector<Request> requests_;
  std::vector<int32_t> depths_;
  std::vector<Unit> units_;
};

}  // namespace specdec::attention
