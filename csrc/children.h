// SPDX-License-Identifier: Apache-2.0
// Children of a draft tree's nodes, chosen or sampled from the drafter's law at their parent.
#pragma once

#include <cstdint>

#include "law.h"
#include "view.h"

namespace specdec {

enum class Method : int { kIndependent, kWithoutReplacement, kTopK, kHybrid };

struct ChildrenArgs {
  Rows logits;
  int64_t k = 0;
  Method method = Method::kIndependent;
  SamplingArgs sampling;
  const int64_t* seeds = nullptr;
  const int64_t* positions = nullptr;
  const int64_t* nodes = nullptr;
  Purpose purpose = Purpose::kDraft;
  int64_t* out_tokens = nullptr;  // [N, k]
  float* out_scores = nullptr;    // [N, k]
};

void sample_children(const ChildrenArgs& args, int threads);

}  // namespace specdec
