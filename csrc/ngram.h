// SPDX-License-Identifier: Apache-2.0
// Prompt lookup: what followed earlier occurrences of the n-gram that a text ends with.
#pragma once

#include <cstdint>
#include <vector>

namespace specdec {

// Texts, and which n-grams of theirs to look up.
struct NgramArgs {
  const int64_t* tokens = nullptr;   // [B, width]
  const int64_t* lengths = nullptr;  // [B]
  int64_t requests = 0, width = 0;
  int64_t min_ngram = 1, max_ngram = 1;
  bool cyclic = false;  // a continuation that reaches the end of the text goes on with itself
};

struct NgramDraftArgs {
  NgramArgs search;
  bool frequent = false;
  int64_t num_draft = 0;
  int64_t* out = nullptr;  // [B, num_draft]
};

struct NgramTreeArgs {
  NgramArgs search;
  int64_t max_depth = 0, branches = 1, max_nodes = 1;
  std::vector<double> trust;
  int64_t* out_tokens = nullptr;   // [B, max_nodes]
  int32_t* out_parents = nullptr;  // [B, max_nodes]
  float* out_scores = nullptr;     // [B, max_nodes]
};

void ngram_draft(const NgramDraftArgs& args, int threads);
void ngram_tree(const NgramTreeArgs& args, int threads);

}  // namespace specdec
