// SPDX-License-Identifier: Apache-2.0
// Reading a row of scores in chunks of float32, whatever it is stored as.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "view.h"

namespace specdec {

// Tokens to be read as -inf, ascending.
struct Excluded {
  const int64_t* tokens = nullptr;
  int64_t count = 0;
};

// How a row is to be read.
struct Reader {
  Row row;
  bool only_infinite = false;  // a row with +inf entries: they read as 0, all others as -inf
  Excluded excluded;
  std::vector<float> maxima;  // no score of a chunk is above its own; empty where they are not known

  // Scores of tokens [begin, begin + n), padded with -inf to a multiple of kGroup; n <= kChunk. The result
  // points into the row itself where that is possible, else to `buffer` of kChunk floats.
  const float* read(int64_t begin, int64_t n, float* buffer) const;

  // Whether edits or a bitmask change scores, and raise none. No score is then above the one that was given.
  bool lowers() const;
  // The same scores as they were given.
  const float* read_given(int64_t begin, int64_t n, float* buffer) const;
  // Sets the bits of the tokens whose scores are > bar, or with `ties` >= bar, which is finite, in padded(n)
  // / 32 words, and returns how many. `x`: their scores, or `given` ones where lowers() is true: faster for
  // few bits.
  int64_t flag(const float* x, bool given, int64_t begin, int64_t n, float bar, bool ties,
               uint32_t* bits) const;

  // Where lowers() is true: writes the scores >= bar, which is finite, to `out` and returns how many, or -1
  // where more than `most` of the given ones are.
  int64_t take(const float* given, int64_t begin, int64_t n, float bar, int64_t most, float* out) const;

  // The score of one token; -inf where it has none or is masked.
  float score(int64_t token) const;

 private:
  void mask_bits(int64_t begin, int64_t n, uint32_t* bits) const;
  const float* read_with(const RowEdits* edits, const uint32_t* bitmask, int64_t begin, int64_t n,
                         float* buffer) const;
};

// Whether a bitmask, where there is one, lets a token pass.
inline bool allowed(const uint32_t* bitmask, int64_t token) {
  return bitmask == nullptr || ((bitmask[token >> 5] >> (token & 31)) & 1u);
}

inline int64_t padded(int64_t n) { return (n + kGroup - 1) / kGroup * kGroup; }

}  // namespace specdec
