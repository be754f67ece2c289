// SPDX-License-Identifier: Apache-2.0
// Counter-based randomness: Philox4x32-10 (Salmon et al. 2011). Every number is a function of
// (seed, position, purpose, node, index) and of nothing else.
#pragma once

#include <cmath>
#include <cstdint>

namespace specdec {

enum class Purpose : uint32_t { kNext = 0, kResidual = 1, kAccept = 2, kDraft = 3 };

inline constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

// What keys a stream: counter word 0 runs over the indices, the rest is fixed.
struct Stream {
  uint32_t key0, key1;    // seed
  uint32_t word0;         // where the indices of the ordinal begin
  uint32_t word1;         // purpose + 16 * node
  uint32_t word2, word3;  // position

  Stream(int64_t seed, int64_t position, Purpose purpose, int64_t node = 0, int64_t ordinal = 0)
      : key0(static_cast<uint32_t>(seed)),
        key1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)),
        word0(static_cast<uint32_t>(ordinal) << 24),
        word1(static_cast<uint32_t>(purpose) + 16u * static_cast<uint32_t>(node)),
        word2(static_cast<uint32_t>(position)),
        word3(static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32)) {}
};

struct Words {
  uint32_t word[4];
};

inline Words philox(const Stream& stream, uint32_t index) {
  uint32_t c0 = stream.word0 + index, c1 = stream.word1, c2 = stream.word2, c3 = stream.word3;
  uint32_t k0 = stream.key0, k1 = stream.key1;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * c0, b = static_cast<uint64_t>(kPhiloxM1) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// A coin in (0, 1), exact in float32.
inline double coin(const Stream& stream) { return (philox(stream, 0).word[0] >> 9) * 0x1p-23 + 0x1p-24; }

// An exponential variate from 32 random bits. Small values decide races, so they are the finely resolved end.
inline double exponential(uint32_t word) {
  const double v = (word + 0.5) * 0x1p-32, most = 1.0 - 0x1p-24;
  return -std::log1p(-(v < most ? v : most));
}

inline double race_key(const Stream& stream, int64_t token) {
  return exponential(philox(stream, static_cast<uint32_t>(token >> 2)).word[token & 3]);
}

// Of a leading score, what the next block is told to beat: less, so that ties are still seen.
inline constexpr double kHintShare = 1 - 0x1p-20;

// The leader of an exponential race: largest weight / key, ties to the lowest token.
struct Leader {
  double score = 0;
  int64_t token = -1;  // -1: none yet; a score above 0 is then what a token must beat to matter

  void offer(double other_score, int64_t other_token) {
    if (other_token < 0) return;
    if (other_score > score || (other_score == score && token >= 0 && other_token < token)) {
      score = other_score;
      token = other_token;
    }
  }

  // For the next block of the same race, which need not look at what cannot beat this one. Which blocks a
  // thread has seen before changes the work and never the winner.
  Leader hint() const { return {score * kHintShare, -1}; }

  double bar() const { return score; }
};

struct Racer {
  double score;
  int64_t token;
};

// The k leaders of a race, by descending score; tokens are offered in their order, so that ties go to the
// lowest.
struct Leaders {
  Racer* racers = nullptr;  // room for k
  int64_t k = 0, count = 0;
  double least = 0;  // what a token must beat

  double bar() const { return least; }

  void offer(double score, int64_t token) {
    if (!(score > least)) return;
    int64_t place = count < k ? count++ : k - 1;
    for (; place > 0 && racers[place - 1].score < score; --place) racers[place] = racers[place - 1];
    racers[place] = {score, token};
    if (count == k) least = racers[k - 1].score;
  }

  // What a token of another block must beat.
  double hint() const { return least * kHintShare; }
};

}  // namespace specdec
