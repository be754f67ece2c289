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
  const bool edited = row.edits && row.edits->touches(begin, n);
  return read_with(edited ? row.edits.get() : nullptr, row.bitmask, begin, n, buffer);
}

const float* Reader::read_given(int64_t begin, int64_t n, float* buffer) const {
  return read_with(nullptr, nullptr, begin, n, buffer);
}

const float* Reader::read_with(const RowEdits* edits, const uint32_t* bitmask, int64_t begin, int64_t n,
                               float* buffer) const {
  const int64_t* last = excluded.tokens + excluded.count;
  const int64_t* skip = std::lower_bound(excluded.tokens, last, begin);
  const bool skips = skip != last && *skip < begin + n;
  const bool plain = row.columns == nullptr && begin + n <= row.size && !bitmask && !edits;
  if (plain && row.dtype == SPECDEC_FLOAT32 && !only_infinite && !skips && n % kGroup == 0)
    return static_cast<const float*>(row.data) + begin;

  // The kernels ask for what follows what they read, which is now the copy.
  const char* next = static_cast<const char*>(row.data) + (begin + kChunk) * bytes_of(row.dtype);
  const int64_t stored = row.columns ? n : std::clamp<int64_t>(row.size - begin, 0, n);
  const float* unmasked = buffer;
  if (row.columns) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t column = row.columns[begin + i];
      buffer[i] = column >= 0 && column < row.size ? element(row, column) : -kInf;
    }
  } else if (row.dtype == SPECDEC_FLOAT32) {
    const float* scores = static_cast<const float*>(row.data) + begin;
    if (bitmask && !edits && stored % 32 == 0)
      unmasked = scores;  // copied where they are masked
    else
      std::memcpy(buffer, scores, stored * sizeof(float));
  } else {
    const uint16_t* halves = static_cast<const uint16_t*>(row.data) + begin;
    (row.dtype == SPECDEC_BFLOAT16 ? kernels().from_bfloat16 : kernels().from_float16)(halves, buffer,
                                                                                       stored);
  }
  std::fill(buffer + stored, buffer + padded(n), -kInf);
  if (!row.columns)
    for (int64_t i = 0; i < n * bytes_of(row.dtype); i += 64) __builtin_prefetch(next + i);
  if (edits) edits->apply(buffer, begin, stored);
  if (bitmask) kernels().mask(unmasked, buffer, stored, bitmask + begin / 32);  // NaN is still reported
  if (only_infinite)
    for (int64_t i = 0; i < stored; ++i) buffer[i] = buffer[i] == kInf ? 0.0f : -kInf;
  for (; skip != last && *skip < begin + n; ++skip) buffer[*skip - begin] = -kInf;
  return buffer;
}

bool Reader::lowers() const {
  if (only_infinite || excluded.count > 0) return false;
  return row.edits ? row.edits->lowers() : row.bitmask != nullptr;
}

int64_t Reader::flag(const float* x, bool given, int64_t begin, int64_t n, float bar, bool ties,
                     uint32_t* bits) const {
  int64_t count = kernels().flag(x, padded(n), bar, ties, bits);
  if (count == 0 || !given) return count;
  mask_bits(begin, n, bits);
  if (row.edits)
    row.edits->for_tokens(begin, n, [&](int64_t token) {
      const int64_t i = token - begin;
      if (!(bits[i / 32] >> (i % 32) & 1)) return;
      const float edited = score(token);
      if (!(ties ? edited >= bar : edited > bar)) bits[i / 32] &= ~(1u << (i % 32));
    });
  count = 0;
  for (int64_t word = 0; word < padded(n) / 32; ++word) count += __builtin_popcount(bits[word]);
  return count;
}

int64_t Reader::take(const float* given, int64_t begin, int64_t n, float bar, int64_t most,
                     float* out) const {
  uint32_t bits[kChunk / 32], edited[kChunk / 32] = {};
  if (kernels().flag(given, padded(n), bar, true, bits) > most) return -1;
  mask_bits(begin, n, bits);
  if (row.edits)
    row.edits->for_tokens(
        begin, n, [&](int64_t token) { edited[(token - begin) / 32] |= 1u << ((token - begin) % 32); });
  int64_t count = 0;
  for (int64_t word = 0; word < padded(n) / 32; ++word)
    for (uint32_t rest = bits[word]; rest; rest &= rest - 1) {
      const int64_t i = word * 32 + __builtin_ctz(rest);
      out[count] = edited[word] & (rest & -rest) ? score(begin + i) : given[i];
      count += out[count] >= bar;
    }
  return count;
}

void Reader::mask_bits(int64_t begin, int64_t n, uint32_t* bits) const {
  if (row.bitmask)
    for (int64_t i = 0; i < n; i += 32) bits[i / 32] &= row.bitmask[(begin + i) / 32];
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
