// SPDX-License-Identifier: Apache-2.0
// One request under verification: its tree, its rows of the target and of the draft, its noise.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "edits.h"
#include "ends.h"
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
  int64_t bonus_token;     // -1 = none
  std::vector<bool> ends;  // [nodes]: whether the request ends there; or empty

  // Of nodes in rows [begin, end).
  Request(const VerifyArgs& inputs, Worker& worker, int64_t index, int64_t begin, int64_t end);

  // Whether a node may be kept for the target's row of it.
  bool has_row(int64_t node) const { return !ends_at(node) && target_row_of(node) >= 0; }
  // Of a node that has one.
  Row target_row(int64_t node);
  bool ends_at(int64_t node) const { return !ends.empty() && ends[node]; }
  // The token after a node if the caller has drawn it and the request does not end there, else -1.
  int64_t bonus(int64_t node) const;
  // Whether the token after a node can be told.
  bool can_keep(int64_t node) const { return has_row(node) || bonus(node) >= 0; }
  // The draft's row at a node; not present() where there is none.
  Row draft_row(int64_t node) const;
  double coin_of(int64_t node) const;
  Stream next_stream(int64_t depth, Purpose purpose) const;

 private:
  int64_t target_row_of(int64_t node) const;

  std::shared_ptr<const RequestEdits> edits_;
  std::vector<std::shared_ptr<const RowEdits>> row_edits_;  // of the nodes that were visited
};

}  // namespace specdec
