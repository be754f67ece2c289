// SPDX-License-Identifier: Apache-2.0
// What is reported of emitted tokens: log-probabilities, the likeliest tokens, ranks, and sampling masks.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "law.h"

namespace specdec {

// The most tokens that are listed at a position.
inline constexpr int64_t kMostTop = 20;

class Report {
 public:
  // Of `requests` with `width` positions each. `out_logprobs`, `logprobs` and `masks` may be null.
  Report(int64_t requests, int64_t width, float* out_logprobs, const specdec_logprobs* logprobs,
         const specdec_masks* masks);

  bool asked() const { return out_logprobs_ || logprobs_ || masks_; }

  // Writes what holds of the positions of request b where nothing is emitted.
  void clear(int64_t b, int64_t vocab);

  // A token is emitted at position i of request b, under the law p of its row.
  void emit(Worker& worker, int64_t b, int64_t i, int64_t token, const Law& p, const Sampling& sampling);

  // After all requests: writes the tokens of masks where they are listed, and sets the status of requests of
  // which some did not fit.
  void list_ids(int threads, int32_t* status) const;

 private:
  // How the tokens of a position are found again.
  struct Kept {
    Reader reader;
    float least = kInf;  // the lowest score that was left
    int64_t point = -1;
  };

  class Ranking;
  class Left;

  static void read(Worker& worker, const Law& law, Ranking* ranking, Left* left);
  uint32_t* bits_at(int64_t place, int64_t vocab) const;
  void write_likeliest(int64_t place, int64_t token, const Law& law, const std::optional<Ranking>& ranking);
  void write_mask(int64_t place, const Law& p, const std::optional<Left>& left);

  int64_t requests_, width_;
  float* out_logprobs_;
  const specdec_logprobs* logprobs_;
  const specdec_masks* masks_;
  std::vector<Kept> kept_;  // where ids are listed
};

}  // namespace specdec
