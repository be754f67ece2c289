// SPDX-License-Identifier: Apache-2.0
// Passes over a row: chunk by chunk, blocks in parallel, merged in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "row.h"
#include "team.h"

namespace specdec {

inline int64_t blocks_of(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

// So many tokens for each thread, or its waking takes longer than its work: two threads that sleep lose time
// with 192,000 tokens, and save time with 256,000.
inline constexpr int64_t kWorthWaking = 3 << 15;
inline int threads_for(int64_t tokens, int threads) {
  return static_cast<int>(std::clamp<int64_t>(tokens / kWorthWaking, 1, std::max(threads, 1)));
}

// Rows that a thread claims at a time: enough tokens for the claim not to matter, and few rows.
inline constexpr int64_t kGrainTokens = 1 << 14, kMaxGrain = 64;
inline int64_t grain_of(int64_t vocab) {
  return std::clamp<int64_t>(kGrainTokens / std::max<int64_t>(vocab, 1), 1, kMaxGrain);
}

inline int64_t chunks_of(int64_t vocab) { return (vocab + kChunk - 1) / kChunk; }

// Calls body(begin, n, block, slot) for every chunk that is not known to have no score at or above `least`;
// the chunks of a block come in order, on one thread.
template <class Body>
void for_unread_chunks(Worker& worker, const Reader& reader, float least, Body&& body) {
  const int64_t vocab = reader.row.vocab;
  worker.blocks(blocks_of(vocab), [&](int64_t block, int slot) {
    const int64_t end = std::min(vocab, (block + 1) * kBlock);
    for (int64_t begin = block * kBlock; begin < end; begin += kChunk)
      if (reader.maxima.empty() || !(reader.maxima[begin / kChunk] < least))
        body(begin, std::min(kChunk, end - begin), block, slot);
  });
}

// The same with their scores: body(x, n, begin, block, slot) with a padded n.
template <class Body>
void for_chunks(Worker& worker, const Reader& reader, float least, Body&& body) {
  for_unread_chunks(worker, reader, least, [&](int64_t begin, int64_t n, int64_t block, int slot) {
    alignas(64) float buffer[kChunk];
    body(reader.read(begin, n, buffer), padded(n), begin, block, slot);
  });
}

template <class Body>
void for_chunks(Worker& worker, const Reader& reader, Body&& body) {
  for_chunks(worker, reader, -kInf, body);
}

// The same, but where edits and bitmask raise no score, skip(given, n, begin, block, slot) is first called
// with the scores as they were given; where it returns true, body() is not called.
template <class Skip, class Body>
void for_chunks_unless(Worker& worker, const Reader& reader, Skip&& skip, Body&& body) {
  const bool lowers = reader.lowers();
  for_unread_chunks(worker, reader, -kInf, [&](int64_t begin, int64_t n, int64_t block, int slot) {
    alignas(64) float buffer[kChunk];
    if (lowers && skip(reader.read_given(begin, n, buffer), n, begin, block, slot)) return;
    body(reader.read(begin, n, buffer), padded(n), begin, block, slot);
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

// Adds a chunk with this maximum, and returns what it added.
Mass add_chunk(Mass& mass, const float* x, int64_t n, float max, float slope, float cut);

// The mass of a row at or above the cut. `sum` is not set where the maximum is infinite. `maxima` may be
// null.
Mass mass_of(Worker& worker, const Reader& reader, float slope, float cut,
             std::vector<float>* maxima = nullptr);
Mass merged(const std::vector<Mass>& parts, double slope);

// The weights of the scores that reach the cut; `scores` descend.
std::vector<float> weights_of(const std::vector<float>& scores, const Weight& weight);

// The sum of a row's weights.
double sum_of(Worker& worker, const Reader& reader, const Weight& weight);

}  // namespace specdec
