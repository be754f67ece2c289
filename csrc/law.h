// The law a row of scores stands for, as a few scalars: p(x) = 2^((x - max) * slope) / mass for every score
// at or above the cut. Probabilities are never written down.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "row.h"
#include "team.h"

namespace specdec {

enum Status : int32_t { kNaN = 1, kEmpty = 2 };

struct Sampling {
  double temperature = 1, top_k = 0, top_p = 1, min_p = 0;

  bool greedy() const { return !(temperature > 0); }
  bool cuts(int64_t vocab) const { return (top_k >= 1 && top_k < vocab) || top_p < 1 || min_p > 0; }
};

struct Law {
  Reader reader;
  Weight weight;
  double log2_mass = 0;  // of the weights
  int64_t point = -1;    // >= 0: the law is this token for certain (greedy, or nothing left in the row)
  int32_t status = 0;

  // log2 p(token); -inf for tokens outside the row.
  double log2_p(int64_t token) const;
  double p(int64_t token) const { return std::exp2(log2_p(token)); }
  double logprob(int64_t token) const { return log2_p(token) * std::numbers::ln2; }
};

// The law of a row under `sampling`: one pass, and what its cuts need.
Law law_of(Worker& worker, const Row& row, const Sampling& sampling);
// A row that is the normalised log-law itself: no pass.
Law law_of_logprobs(const Row& row);

// max and sum of weights over a row, in a fixed order.
struct Mass {
  float max = -kInf;
  double sum = 0;
  bool has_nan = false;
};
Mass mass_of(Worker& worker, const Reader& reader, float slope, float cut);

// A draw ~ p by an exponential race. Where `law` is null the row has no cuts and is not greedy: one pass
// finds its law (returned through `found`, if given) and the draw.
int64_t draw(Worker& worker, const Law& law, const Stream& stream);
int64_t draw_with_law(Worker& worker, const Row& row, const Sampling& sampling, const Stream& stream,
                      Law& found);

// The smallest score among the k largest (ties kept); -inf where fewer are there.
float kth_largest(Worker& worker, const Reader& reader, int64_t k, float cut);

// In nats.
double entropy(Worker& worker, const Law& law);

// Calls body(x, n, begin, slot) on every chunk of blocks in parallel; each block's chunks come in order.
template <class Body>
void for_chunks(Worker& worker, const Reader& reader, Body&& body) {
  const int64_t vocab = reader.row.vocab;
  worker.blocks((vocab + kBlock - 1) / kBlock, [&](int64_t block, int slot) {
    alignas(64) float buffer[kChunk];
    const int64_t end = std::min(vocab, (block + 1) * kBlock);
    for (int64_t begin = block * kBlock; begin < end; begin += kChunk) {
      const int64_t n = std::min(kChunk, end - begin);
      body(reader.read(begin, n, buffer), padded(n), begin, block, slot);
    }
  });
}

inline int64_t blocks_of(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

}  // namespace specdec
