// SPDX-License-Identifier: Apache-2.0
// Min-p, top-k and top-p as one threshold on the score, found by value and never by sorting a row.
#pragma once

#include <cstdint>
#include <vector>

#include "nucleus.h"

namespace specdec {

struct Sampling {
  double temperature = 1, top_k = 0, top_p = 1, min_p = 0;
  bool min_p_last = false;  // after top-k and top-p, which then act as if it were not there
  bool whole = false;       // whether the mass before cuts is wanted

  bool greedy() const { return !(temperature > 0); }
  bool cuts(int64_t vocab) const { return (top_k >= 1 && top_k < vocab) || top_p < 1 || min_p > 0; }
  // Whether top-p cuts the whole law, and nothing else comes before it.
  bool top_p_first(int64_t vocab) const {
    return top_p < 1 && !(top_k >= 1 && top_k < vocab) && (min_p_last || !(min_p > 0));
  }
};

// That of request b; null = nothing is cut.
inline Sampling sampling_of(const specdec_sampling* s, int64_t b) {
  if (!s) return {};
  const auto at = [b](const double* values, double value) { return values ? values[b] : value; };
  return {at(s->temperatures, s->temperature),
          at(s->top_ks, s->top_k),
          at(s->top_ps, s->top_p),
          at(s->min_ps, s->min_p),
          s->min_p_last != 0,
          false};
}

// Scores that a list of the largest ones may hold.
inline constexpr int64_t kMostCandidates = 1024;

struct TopScores {
  std::vector<float> scores;  // descending, with all ties of the last
  std::vector<float> maxima;  // of chunks
  Mass whole;                 // of the row, where it was asked for
  bool has_nan = false;
};

// The k largest scores of a row, k <= kMostCandidates, in one pass, which also weighs the row where `slope`
// is above 0. False where the ties are too many to list.
bool top_scores(Worker& worker, const Reader& reader, int64_t k, float slope, TopScores& out);

// The smallest of the k largest scores; where fewer than k reach `cut`, no larger than the smallest of those.
float kth_largest(Worker& worker, const Reader& reader, int64_t k, float cut);

// Sets weight.cut by passes over the row, and returns the mass at or above it. `weighed`: the row without
// cuts; only where top-p comes first, else null.
double cut_row(Worker& worker, const Reader& reader, const Sampling& sampling, const Weighed* weighed,
               Weight& weight);

// The same where the top_k largest scores are at hand: nothing is read again.
double cut_scores(const std::vector<float>& scores, const Sampling& sampling, Weight& weight);

}  // namespace specdec
