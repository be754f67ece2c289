// SPDX-License-Identifier: Apache-2.0
// The law a row of scores stands for, as a few scalars: p(x) = 2^((x - max) * slope) / mass for every score
// at or above the cut. Probabilities are never written down.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

#include "cuts.h"

namespace specdec {

enum Status : int32_t {
  kNaN = SPECDEC_STATUS_NAN,
  kEmpty = SPECDEC_STATUS_EMPTY,
  kImpossible = SPECDEC_STATUS_IMPOSSIBLE,
  kOverflow = SPECDEC_STATUS_OVERFLOW
};

struct Law {
  Reader reader;
  Weight weight;
  double log2_mass = 0;  // of the weights
  double whole = 0;  // the mass without cuts, in the same unit, where cuts were found in it or it was wanted
  int64_t point = -1;  // >= 0: the law is this token for certain (greedy, forced, or nothing is left)
  int32_t status = 0;

  // The lowest score with a probability above 0, where the law is not a point.
  float least() const { return std::max(weight.cut, -std::numeric_limits<float>::max()); }
  // log2 p(token); -inf for tokens outside the row.
  double log2_p(int64_t token) const;
  double p(int64_t token) const { return std::exp2(log2_p(token)); }
  // The same of any token with this score, where the law is not a point.
  double log2_p_of(float score) const;
  double logprob(int64_t token) const { return log2_p(token) * std::numbers::ln2; }
};

// The law of a row under `sampling`: one pass, and what its cuts need.
Law law_of(Worker& worker, const Row& row, const Sampling& sampling);
// A row that is the law itself, its probabilities or their logarithms: no pass.
Law law_of_logprobs(const Row& row);
Law law_of_probs(const Row& row);
// Status of a row of probabilities that may be no law.
int32_t status_of_probs(Worker& worker, const Row& row);

// A draw ~ p by an exponential race.
int64_t draw(Worker& worker, const Law& law, const Stream& stream);
// The same from a row whose law is not known yet: without cuts one pass gives both.
int64_t draw_with_law(Worker& worker, const Row& row, const Sampling& sampling, const Stream& stream,
                      Law& found);

// In nats.
double entropy(Worker& worker, const Law& law);

}  // namespace specdec
