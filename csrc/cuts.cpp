// SPDX-License-Identifier: Apache-2.0
#include "cuts.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "select.h"

namespace specdec {
namespace {

float min_p_cut(const Sampling& sampling, const Weight& weight) {
  if (!(sampling.min_p > 0)) return -kInf;
  if (sampling.min_p >= 1) return weight.max;
  return static_cast<float>(weight.max + std::log2(sampling.min_p) / weight.slope);
}

constexpr int64_t kFew = 64;  // scores of a chunk that are looked up one by one

// The score at which the weights, from the largest on, first reach top_p of the whole; -inf where they do
// not.
float nucleus(const std::vector<float>& scores, const std::vector<float>& weights, double top_p,
              double whole) {
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    if ((sum += weights[i]) >= top_p * whole) return scores[i];
  return -kInf;
}

double total(const std::vector<float>& weights) {
  double sum = 0;
  for (float weight : weights) sum += weight;
  return sum;
}

}  // namespace

bool top_scores(Worker& worker, const Reader& reader, int64_t k, float slope, TopScores& out) {
  struct alignas(64) Pile {
    std::vector<float> scores;
    int64_t count = 0;
    float bar = -std::numeric_limits<float>::max();  // -inf is nobody's candidate
    bool has_nan = false, overflow = false;
  };
  const int64_t often = 2 * k, most = often + kChunk;
  std::vector<Pile> piles(worker.slots());
  std::vector<Mass> masses(slope > 0 ? blocks_of(reader.row.vocab) : 0);
  out.maxima.resize(chunks_of(reader.row.vocab));
  const auto thin = [k](Pile& pile) {
    float* first = pile.scores.data();
    float* last = std::remove_if(first, first + pile.count, [](float x) { return std::isnan(x); });
    if (last - first > k) {
      std::nth_element(first, first + k - 1, last, std::greater<float>());
      pile.bar = first[k - 1];
      last = std::partition(first, last, [&](float x) { return x >= pile.bar; });
    }
    pile.count = last - first;
  };
  const auto shorten = [&](Pile& pile) {
    if (pile.count > often) thin(pile);
    if (pile.count > most) pile.overflow = true, pile.count = 0;
  };
  // Of scores as they were given: whether none is a candidate, or so few that they were taken one by one.
  const auto settle = [&](const float* x, int64_t n, int64_t begin, int64_t, int slot) {
    Pile& pile = piles[slot];
    float& max = out.maxima[begin / kChunk];
    max = kernels().max(x, padded(n), &pile.has_nan);
    if (max < pile.bar) return true;
    pile.scores.resize(most + kChunk);
    float* first = pile.scores.data() + pile.count;
    const int64_t taken = reader.take(x, begin, n, pile.bar, kFew, first);
    if (taken < 0) return false;
    max = std::accumulate(first, first + taken, pile.bar, [](float a, float b) { return std::max(a, b); });
    pile.count += taken;
    shorten(pile);
    return true;
  };
  const auto add = [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    Pile& pile = piles[slot];
    const float max = out.maxima[begin / kChunk] = kernels().max(x, n, &pile.has_nan);
    if (slope > 0) add_chunk(masses[block], x, n, max, slope, -kInf);
    if (max < pile.bar) return;
    pile.scores.resize(most + kChunk);
    pile.count += kernels().keep(x, n, pile.bar, pile.scores.data() + pile.count);
    shorten(pile);
  };
  slope > 0 ? for_chunks(worker, reader, add) : for_chunks_unless(worker, reader, settle, add);
  out.whole = merged(masses, slope);
  std::vector<float>& scores = out.scores;
  scores.clear();
  bool overflow = false;
  for (Pile& pile : piles) {
    thin(pile);
    out.has_nan |= pile.has_nan;
    overflow |= pile.overflow;
    scores.insert(scores.end(), pile.scores.begin(), pile.scores.begin() + pile.count);
  }
  if (overflow) return false;
  std::sort(scores.begin(), scores.end(), std::greater<float>());
  if (static_cast<int64_t>(scores.size()) > k)
    scores.erase(std::upper_bound(scores.begin() + k, scores.end(), scores[k - 1], std::greater<float>()),
                 scores.end());
  return true;
}

float kth_largest(Worker& worker, const Reader& reader, int64_t k, float cut) {
  if (k >= reader.row.vocab) return -kInf;
  TopScores top;
  if (k <= kMostCandidates && top_scores(worker, reader, k, 0, top))
    return static_cast<int64_t>(top.scores.size()) < k ? -kInf : top.scores[k - 1];
  return select(worker, reader, cut, nullptr,
                [k](uint64_t all) { return std::min(all, static_cast<uint64_t>(k)); })
      .bar;
}

double cut_row(Worker& worker, const Reader& reader, const Sampling& sampling, const Weighed* weighed,
               Weight& weight) {
  const float likely = min_p_cut(sampling, weight);
  weight.cut = sampling.min_p_last ? -kInf : likely;
  if (sampling.top_k >= 1 && sampling.top_k < reader.row.vocab)
    weight.cut =
        std::max(weight.cut, kth_largest(worker, reader, static_cast<int64_t>(sampling.top_k), weight.cut));
  if (sampling.top_p < 1) {
    const Weighed known =
        weighed ? *weighed : weigh_nucleus(worker, reader, weight.slope, weight.cut, sampling.top_p);
    const Nucleus nucleus =
        known.found ? known.nucleus : select_nucleus(worker, reader, weight, known.whole.sum, sampling.top_p);
    weight.cut = std::max(weight.cut, nucleus.bar);
    if (weight.cut >= likely) return nucleus.mass;
  }
  weight.cut = std::max(weight.cut, likely);
  return mass_of(worker, reader, weight.slope, weight.cut).sum;
}

double cut_scores(const std::vector<float>& scores, const Sampling& sampling, Weight& weight) {
  const float likely = std::min(min_p_cut(sampling, weight), weight.max);
  weight.cut = sampling.min_p_last ? scores.back() : std::max(scores.back(), likely);
  if (sampling.top_p < 1) {
    const std::vector<float> weights = weights_of(scores, weight);
    weight.cut = nucleus(scores, weights, sampling.top_p, total(weights));
  }
  weight.cut = std::max(weight.cut, likely);
  return total(weights_of(scores, weight));
}

}  // namespace specdec
