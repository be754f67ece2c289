// SPDX-License-Identifier: Apache-2.0
// One request under verification: its tree, its rows of the target and of the draft, its noise.
#pragma once

#include <cstdint>

#include "law.h"
#include "tree.h"
#include "view.h"

namespace specdec {

// What a batch is verified with.
using VerifyArgs = specdec_verify_args;

struct Request {
  const VerifyArgs& inputs;
  Worker& worker;
  int64_t index;      // b
  int64_t first_row;  // of its nodes
  Tree tree;
  Children children;
  Sampling sampling, draft_sampling;
  int32_t status = 0;

  // Of nodes in rows [begin, end).
  Request(const VerifyArgs& inputs, Worker& worker, int64_t index, int64_t begin, int64_t end);

  Row target_row(int64_t node) const;
  // The draft's row at a node; not present() where there is none.
  Row draft_row(int64_t node) const;
  double coin_of(int64_t node) const;
  Stream next_stream(int64_t depth, Purpose purpose) const;
};

}  // namespace specdec
