// SPDX-License-Identifier: Apache-2.0
#include "row.h"

#include <cmath>
#include <cstring>

#include "edits.h"

namespace specdec {

static float element(const Row& row, int64_t i) {
  if (row.dtype == SPECDEC_FLOAT32) return static_cast<const float*>(row.data)[i];
  const uint16_t half = static_cast<const uint16_t*>(row.data)[i];
  float out;
  (row.dtype == SPECDEC_BFLOAT16 ? kernels().from_bfloat16 : kernels().from_float16)(&half, &out, 1);
  return out;
}

const float* Reader::read(int64_t begin, int64_t n, float* buffer) const {
  const int64_t* last = excluded.tokens + excluded.count;
  const int64_t* skip = std::lower_bound(excluded.tokens, last, begin);
  const bool skips = skip != last && *skip < begin + n;
  const bool edits = row.edits && row.edits->touches(begin, n);
  const bool plain = row.columns == nullptr && begin + n <= row.size && !row.bitmask && !edits;
  if (plain && row.dtype == SPECDEC_FLOAT32 && !only_infinite && !skips && n % kGroup == 0)
    return static_cast<const float*>(row.data) + begin;

  const int64_t stored = row.columns ? n : std::clamp<int64_t>(row.size - begin, 0, n);
  const float* unmasked = buffer;
  if (row.columns) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t column = row.columns[begin + i];
      buffer[i] = column >= 0 && column < row.size ? element(row, column) : -kInf;
    }
  } else if (row.dtype == SPECDEC_FLOAT32) {
    const float* scores = static_cast<const float*>(row.data) + begin;
    if (row.bitmask && !edits && stored % 32 == 0)
      unmasked = scores;  // copied where they are masked
    else
      std::memcpy(buffer, scores, stored * sizeof(float));
  } else {
    const uint16_t* halves = static_cast<const uint16_t*>(row.data) + begin;
    (row.dtype == SPECDEC_BFLOAT16 ? kernels().from_bfloat16 : kernels().from_float16)(halves, buffer,
                                                                                       stored);
  }
  std::fill(buffer + stored, buffer + padded(n), -kInf);
  if (edits) row.edits->apply(buffer, begin, stored);
  if (row.bitmask)
    kernels().mask(unmasked, buffer, stored, row.bitmask + begin / 32);  // NaN is still reported
  if (only_infinite)
    for (int64_t i = 0; i < stored; ++i) buffer[i] = buffer[i] == kInf ? 0.0f : -kInf;
  for (; skip != last && *skip < begin + n; ++skip) buffer[*skip - begin] = -kInf;
  return buffer;
}

float Reader::score(int64_t token) const {
  if (token < 0 || token >= row.vocab || !allowed(row.bitmask, token)) return -kInf;
  int64_t i = token;
  if (row.columns) i = row.columns[token];
  if (i < 0 || i >= row.size) return -kInf;
  float x = element(row, i);
  if (row.edits) x = row.edits->edited(x, token);
  if (only_infinite) return x == kInf ? 0.0f : -kInf;
  return std::isnan(x) ? -kInf : x;
}

}  // namespace specdec
