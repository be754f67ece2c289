// SPDX-License-Identifier: Apache-2.0
// Verification of a batch of draft trees. The mathematics is in docs/verification.md; the names here are its
// names.
#pragma once

#include <cstdint>
#include <vector>

#include "law.h"
#include "tree.h"
#include "view.h"

namespace specdec {

enum class Rule : int { kMatch, kToken, kTraversal, kTypical, kRelaxed, kLenient, kSynthetic };

struct Bitmask {
  const uint32_t* words = nullptr;
  int64_t stride = 0;
};

struct VerifyArgs {
  Rows target;
  const int64_t* tokens = nullptr;
  const int32_t* parents = nullptr;
  const int32_t* cu_nodes = nullptr;
  const uint8_t* proposals = nullptr;
  const int32_t* first_child = nullptr;
  const int32_t* next_sibling = nullptr;
  int64_t requests = 0;

  Rows draft;                           // data null: none
  const int32_t* draft_rows = nullptr;  // row of each node, -1 = none
  int64_t draft_chain = 0;              // K > 0: draft is [B, K, Vd], node i of request b has row b * K + i
  const int64_t* draft_ids = nullptr;   // [Vd] token of each column
  const int32_t* draft_columns = nullptr;  // [V] column of each token, -1 = none
  bool draft_is_logprobs = false;

  SamplingArgs sampling, draft_sampling;
  Rule rule = Rule::kMatch;
  std::vector<double> rule_values;
  const int64_t* seeds = nullptr;
  const int64_t* positions = nullptr;
  Bitmask bitmask;

  int64_t width = 0;              // max_depth + 1
  int64_t* out_tokens = nullptr;  // [B, width]
  int32_t* out_num_tokens = nullptr;
  int32_t* out_num_accepted = nullptr;
  int32_t* out_path = nullptr;    // [B, width]
  float* out_logprobs = nullptr;  // [B, width] or null
  int32_t* out_status = nullptr;

  double* trace_thresholds = nullptr;  // tests: [R] what each node's coin was compared with
  double* trace_masses = nullptr;      // tests: [R] residual mass after rejecting the node
};

void verify(const VerifyArgs& args, int threads);

struct SampleArgs {
  Rows logits;
  SamplingArgs sampling;
  const int64_t* seeds = nullptr;
  const int64_t* positions = nullptr;
  Bitmask bitmask;
  int64_t* out_tokens = nullptr;
  float* out_logprobs = nullptr;
};

void sample(const SampleArgs& args, int threads);

}  // namespace specdec
