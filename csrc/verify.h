// SPDX-License-Identifier: Apache-2.0
// Verification of a batch of draft trees. The mathematics is in docs/verification.md; the names here are its
// names.
#pragma once

#include <cstdint>
#include <vector>

#include "request.h"

namespace specdec {

enum class Rule : int {
  kMatch,
  kToken,
  kTraversal,
  kTypical,
  kRelaxed,
  kLenient,
  kSynthetic,
  kDeferred,
  kThreshold,
  kEnsemble
};

struct VerifyArgs : VerifyInputs {
  Rule rule = Rule::kMatch;
  std::vector<double> rule_values;

  int64_t width = 0;                  // max_depth + 1
  void* out_tokens = nullptr;         // [B, width]
  bool out_tokens_are_int32 = false;  // else int64
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
