// SPDX-License-Identifier: Apache-2.0
#include "cuts.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace specdec {
namespace {

// Floats in the order of unsigned integers.
uint32_t key_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

float of_key(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7FFFFFFFu : ~key;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest t for which `amount` of the scores >= t (and >= cut) reaches goal(amount of all of them), by
// histograms of the scores' bits, 11 + 11 + 10 at a time. Amounts are integers, so no order of adding
// matters: counts where weight is null, else weights in fixed point.
float select(Worker& worker, const Reader& reader, float cut, const Weight* weight,
             const std::function<uint64_t(uint64_t)>& goal) {
  constexpr int kBits[3] = {11, 11, 10};
  const float lowest = std::max(cut, -std::numeric_limits<float>::max());
  double unit = 1;
  if (weight) unit = std::ldexp(1.0, 62 - static_cast<int>(std::ceil(std::log2(reader.row.vocab + 1.0))));
  std::vector<std::vector<uint64_t>> bins(worker.slots());
  uint32_t prefix = 0;
  uint64_t above = 0, wanted = 0;
  for (int level = 0, shift = 32; level < 3; ++level) {
    shift -= kBits[level];
    const uint32_t size = 1u << kBits[level];
    for (auto& b : bins) b.clear();
    for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t, int64_t, int slot) {
      auto& bin = bins[slot];
      if (bin.empty()) bin.resize(size);
      alignas(64) float z[kChunk], e[kChunk];
      if (weight) {
        for (int64_t i = 0; i < n; ++i) z[i] = (x[i] - weight->max) * weight->slope;
        kernels().exp2(z, e, n);
      }
      for (int64_t i = 0; i < n; ++i) {
        if (!(x[i] >= lowest)) continue;
        const uint32_t key = key_of(x[i]);
        if (level > 0 && key >> (shift + kBits[level]) != prefix) continue;
        bin[(key >> shift) & (size - 1)] += weight ? static_cast<uint64_t>(e[i] * unit) : 1;
      }
    });
    std::vector<uint64_t> sum(size);
    for (const auto& bin : bins)
      for (size_t i = 0; i < bin.size(); ++i) sum[i] += bin[i];
    if (level == 0) {
      uint64_t all = 0;
      for (uint64_t amount : sum) all += amount;
      wanted = goal(all);
    }
    int64_t found = size - 1;
    while (found > 0 && above + sum[found] < wanted) above += sum[found--];
    prefix = (prefix << kBits[level]) | static_cast<uint32_t>(found);
  }
  return of_key(prefix);
}

float min_p_cut(const Sampling& sampling, const Weight& weight) {
  if (!(sampling.min_p > 0)) return -kInf;
  if (sampling.min_p >= 1) return weight.max;
  return static_cast<float>(weight.max + std::log2(sampling.min_p) / weight.slope);
}

// The weights of the scores that reach the cut; `scores` descend.
std::vector<float> weights_of(const std::vector<float>& scores, const Weight& weight) {
  std::vector<float> weights(padded(scores.size()), -kInf);
  size_t count = 0;
  for (; count < scores.size() && scores[count] >= weight.cut; ++count)
    weights[count] = (scores[count] - weight.max) * weight.slope;
  kernels().exp2(weights.data(), weights.data(), static_cast<int64_t>(weights.size()));
  weights.resize(count);
  return weights;
}

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
  for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    Pile& pile = piles[slot];
    const float max = out.maxima[begin / kChunk] = kernels().max(x, n, &pile.has_nan);
    if (slope > 0) add_chunk(masses[block], x, n, max, slope, -kInf);
    if (max < pile.bar) return;
    pile.scores.resize(most + kChunk);
    pile.count += kernels().keep(x, n, pile.bar, pile.scores.data() + pile.count);
    if (pile.count > often) thin(pile);
    if (pile.count > most) pile.overflow = true, pile.count = 0;
  });
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
                [k](uint64_t all) { return std::min(all, static_cast<uint64_t>(k)); });
}

double cut_row(Worker& worker, const Reader& reader, const Sampling& sampling, double whole, Weight& weight) {
  const float likely = min_p_cut(sampling, weight);
  weight.cut = sampling.min_p_last ? -kInf : likely;
  if (sampling.top_k >= 1 && sampling.top_k < reader.row.vocab)
    weight.cut =
        std::max(weight.cut, kth_largest(worker, reader, static_cast<int64_t>(sampling.top_k), weight.cut));
  if (sampling.top_p < 1) {
    if (weight.cut > -kInf) whole = mass_of(worker, reader, weight.slope, weight.cut).sum;
    TopScores top;
    float cut = -kInf;
    if (top_scores(worker, reader, kMostCandidates, 0, top))
      cut = nucleus(top.scores, weights_of(top.scores, weight), sampling.top_p, whole);
    if (cut == -kInf) {
      const double top_p = std::max(sampling.top_p, 0.0);
      cut = select(worker, reader, weight.cut, &weight, [top_p](uint64_t all) {
        return std::max<uint64_t>(static_cast<uint64_t>(top_p * static_cast<double>(all)), 1);
      });
    }
    weight.cut = std::max(weight.cut, cut);
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
