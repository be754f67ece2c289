// SPDX-License-Identifier: Apache-2.0
// One request under verification: its tree, its rows of the target and of the draft, its noise.
#pragma once

#include <cstdint>

#include "law.h"
#include "tree.h"
#include "view.h"

namespace specdec {

struct Bitmask {
  const uint32_t* words = nullptr;
  int64_t stride = 0;
};

// What every node of a batch is verified with, whatever the rule.
struct VerifyInputs {
  Rows target;
  const int32_t* target_rows = nullptr;  // [R] row of each node, -1 = none; null: node row r has row r,
  bool rows_end_early = false;           // or r - b, where the last node of request b has none
  const int64_t* tokens = nullptr;
  const int32_t* parents = nullptr;
  const int32_t* cu_nodes = nullptr;
  const uint8_t* proposals = nullptr;
  const int32_t* first_child = nullptr;
  const int32_t* next_sibling = nullptr;
  int64_t rows = 0;      // R
  int64_t requests = 0;  // B

  Rows draft;                           // data null: none
  const int32_t* draft_rows = nullptr;  // row of each node, -1 = none
  int64_t draft_chain = 0;              // K > 0: draft is [B, K, Vd], node i of request b has row b * K + i
  const int64_t* draft_ids = nullptr;   // [Vd] token of each column
  const int32_t* draft_columns = nullptr;  // [V] column of each token, -1 = none
  bool draft_is_logprobs = false;
  bool draft_is_probs = false;

  SamplingArgs sampling, draft_sampling;
  const int64_t* seeds = nullptr;
  const int64_t* positions = nullptr;
  Bitmask bitmask;
  const void* bonus_tokens = nullptr;  // [B] token after the last node of a chain, or null
  bool bonus_is_int32 = false;         // else int64
};

struct Request {
  const VerifyInputs& inputs;
  Worker& worker;
  int64_t index;      // b
  int64_t first_row;  // of its nodes
  Tree tree;
  Children children;
  Sampling sampling, draft_sampling;
  int32_t status = 0;
  int64_t bonus_token;  // -1 = none

  // Of nodes in rows [begin, end).
  Request(const VerifyInputs& inputs, Worker& worker, int64_t index, int64_t begin, int64_t end);

  bool has_row(int64_t node) const { return target_row_of(node) >= 0; }
  // Of a node that has one.
  Row target_row(int64_t node) const;
  // The token after a node if the caller has drawn it, else -1.
  int64_t bonus(int64_t node) const;
  // Whether the token after a node can be told.
  bool can_keep(int64_t node) const { return has_row(node) || bonus(node) >= 0; }
  // The draft's row at a node; not present() where there is none.
  Row draft_row(int64_t node) const;
  double coin_of(int64_t node) const;
  Stream next_stream(int64_t depth, Purpose purpose) const;

 private:
  int64_t target_row_of(int64_t node) const;
};

}  // namespace specdec
