// SPDX-License-Identifier: Apache-2.0
// Attention of a node to the path that leads to it. Siblings are not masked: they are never read.
#pragma once

#include <cstdint>

#include "attention_plan.h"
#include "attention_scratch.h"

namespace specdec::attention {

class Path {
 public:
  // Of node i of a unit. `own` is of the thread that has the unit.
  Path(const Plan& plan, const Memory& memory, const Unit& unit, int64_t i, Scratch& own);

  // Adds the path to the rows of one head of the cache.
  void attend(int64_t head, const SoftmaxState& rows) const;

 private:
  void find(int64_t head, int64_t depth, int64_t count, TileRows& tile) const;

  const Plan& plan_;
  const Memory& memory_;
  const Unit& unit_;
  const int64_t i_;
  Scratch& own_;
  const AttentionArgs& args_;
  const Request& request_;
  int64_t first_depth_, depth_;  // those seen
};

}  // namespace specdec::attention
