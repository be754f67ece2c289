// SPDX-License-Identifier: Apache-2.0
// Passes over a row: chunk by chunk, blocks in parallel, merged in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "row.h"
#include "team.h"

namespace specdec {

inline int64_t blocks_of(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

// Threads are woken only for work, in tokens, that outlasts the waking.
inline constexpr int64_t kWorthWaking = 1 << 16;
inline int threads_for(int64_t tokens, int threads) {
  return tokens < kWorthWaking ? 1 : std::max(threads, 1);
}

// Rows that a thread claims at a time: enough tokens for the claim not to matter, and few rows.
inline constexpr int64_t kGrainTokens = 1 << 14, kMaxGrain = 64;
inline int64_t grain_of(int64_t vocab) {
  return std::clamp<int64_t>(kGrainTokens / std::max<int64_t>(vocab, 1), 1, kMaxGrain);
}

// Calls body(x, n, begin, block, slot) for every chunk; the chunks of a block come in order, on one thread.
template <class Body>
void for_chunks(Worker& worker, const Reader& reader, Body&& body) {
  const int64_t vocab = reader.row.vocab;
  worker.blocks(blocks_of(vocab), [&](int64_t block, int slot) {
    alignas(64) float buffer[kChunk];
    const int64_t end = std::min(vocab, (block + 1) * kBlock);
    for (int64_t begin = block * kBlock; begin < end; begin += kChunk) {
      const int64_t n = std::min(kChunk, end - begin);
      body(reader.read(begin, n, buffer), padded(n), begin, block, slot);
    }
  });
}

// A sum of weights relative to the largest score that went into it.
struct Mass {
  float max = -kInf;
  double sum = 0;
  bool has_nan = false;
};

// Moves a mass, and a leader's score with it, to a larger maximum.
void raise(Mass& mass, float max, double slope, Leader* leader = nullptr);
void merge(Mass& into, Mass part, double slope, Leader* into_leader = nullptr, Leader leader = {});

// The mass of a row at or above the cut. `sum` is not set where the maximum is infinite.
Mass mass_of(Worker& worker, const Reader& reader, float slope, float cut);

// The sum of a row's weights.
double sum_of(Worker& worker, const Reader& reader, const Weight& weight);

}  // namespace specdec
