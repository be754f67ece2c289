// SPDX-License-Identifier: Apache-2.0
#include "nucleus.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "select.h"

namespace specdec {
namespace {

constexpr int64_t kOften = 2048;          // scores after which a pile is thinned
constexpr int64_t kMost = 16384;          // that may be left then
constexpr int64_t kSample = 1024;         // of them that are looked at
constexpr double kSafe = 0.8;             // share that is dropped of what might be
constexpr float kCoarse = 4, kFine = 16;  // bins between a weight and its half
constexpr int kBins = 1024;

uint64_t wanted_of(double top_p, double whole, double unit) {
  return std::max<uint64_t>(static_cast<uint64_t>(std::max(top_p, 0.0) * whole * unit), 1);
}

int bin_of(float score, const Weight& weight, float bins) {
  return static_cast<int>(std::min((weight.max - score) * (weight.slope * bins), kBins - 1.0f));
}

// What a thread has read: its mass, and the scores at or above a bar, which rises.
struct alignas(64) Pile {
  std::unique_ptr<float[]> scores = std::make_unique_for_overwrite<float[]>(2 * kMost + kChunk + kGroup);
  int64_t read = 0, count = 0, often = kOften;
  float bar = -std::numeric_limits<float>::max();
  Mass whole;
  Mass below;           // the bar, about, when it was raised
  int64_t thinned = 0;  // what had been read then

  void add(const float* x, int64_t n, bool has_nan) {
    float* first = scores.get() + count;
    float* last = first + kernels().keep(x, n, bar, first);
    if (has_nan) last = std::remove_if(first, last, [](float score) { return std::isnan(score); });
    count = last - scores.get();
  }

  // Raises the bar as far as the whole row is likely to allow: what was read below it has less than 1 - top_p
  // of the mass so far even if there is as much in every part of the row.
  void thin(float slope, double top_p, double vocab) {
    const Weight weight{whole.max, slope};
    const int64_t step = std::max<int64_t>(count / kSample, 1);
    int32_t counts[kBins] = {};
    for (int64_t i = 0; i < count; i += step) ++counts[bin_of(scores[i], weight, kCoarse)];
    raise(below, whole.max, slope);
    const double allowed = kSafe * (1 - top_p) * (static_cast<double>(read) / vocab) * whole.sum;
    double sum = thinned > 0 ? below.sum * static_cast<double>(read) / static_cast<double>(thinned) : 0,
           middle = std::exp2(-(kBins - 0.5) / kCoarse);
    int bin = kBins - 1;
    for (;; --bin, middle *= std::exp2(1 / kCoarse)) {
      const double more = middle * static_cast<double>(counts[bin] * step);
      if (bin == 0 || sum + more > allowed) break;
      sum += more;
    }
    below = {whole.max, sum};
    thinned = read;
    bar = std::max(bar, weight.max - static_cast<float>(bin + 1) / (slope * kCoarse));
    std::fill(scores.get() + count, scores.get() + padded(count), -kInf);
    count = kernels().keep(scores.get(), padded(count), bar, scores.get());
    often = std::max(kOften, 2 * count);
    if (count > kMost) bar = kInf, count = 0, often = 0;
  }
};

// In scores that have all of the row's at or above `bar`.
bool find(const std::vector<float>& scores, float bar, const Weight& weight, uint64_t wanted, double unit,
          Nucleus& out) {
  const auto count = static_cast<int64_t>(scores.size());
  uint64_t sums[kBins] = {};
  std::vector<int16_t> bins(count);
  alignas(64) float z[kChunk], weights[kChunk];
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t n = std::min(kChunk, count - begin);
    for (int64_t i = 0; i < n; ++i) z[i] = (scores[begin + i] - weight.max) * weight.slope;
    std::fill(z + n, z + padded(n), -kInf);
    kernels().exp2(z, weights, padded(n));
    for (int64_t i = 0; i < n; ++i) {
      const int bin = bin_of(scores[begin + i], weight, kFine);
      bins[begin + i] = static_cast<int16_t>(bin);
      sums[bin] += fixed(weights[i], unit);
    }
  }
  uint64_t amount = 0;
  int last = 0;
  while (last < kBins && amount + sums[last] < wanted) amount += sums[last++];
  if (last == kBins) return false;
  std::vector<float> near;
  for (int64_t i = 0; i < count; ++i)
    if (bins[i] == last) near.push_back(scores[i]);
  std::sort(near.begin(), near.end(), std::greater<float>());
  const std::vector<float> their_weights = weights_of(near, weight);
  size_t i = 0;
  while (amount < wanted) amount += fixed(their_weights[i++], unit);
  out.bar = near[i - 1];
  for (; i < near.size() && near[i] == out.bar; ++i) amount += fixed(their_weights[i], unit);
  out.mass = static_cast<double>(amount) / unit;
  return out.bar >= bar;
}

}  // namespace

Weighed weigh_nucleus(Worker& worker, const Reader& reader, float slope, float cut, double top_p,
                      std::vector<float>* maxima) {
  const double unit = fixed_unit(reader.row.vocab);
  std::vector<Mass> masses(blocks_of(reader.row.vocab));
  std::vector<Pile> piles(worker.slots());
  for (Pile& pile : piles) pile.bar = std::max(pile.bar, cut);
  if (maxima) maxima->resize(chunks_of(reader.row.vocab));
  for_chunks(worker, reader, cut, [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    bool has_nan = false;
    const float max = kernels().max(x, n, &has_nan);
    masses[block].has_nan |= has_nan;
    if (maxima) (*maxima)[begin / kChunk] = max;
    Pile& pile = piles[slot];
    pile.read += n;
    merge(pile.whole, add_chunk(masses[block], x, n, max, slope, cut), slope);
    if (max < pile.bar || max == kInf) return;
    pile.add(x, n, has_nan);
    if (pile.count > pile.often) pile.thin(slope, top_p, static_cast<double>(reader.row.vocab));
  });
  Weighed out;
  out.whole = merged(masses, slope);
  if (!(out.whole.sum > 0)) return out;
  float bar = -kInf;
  std::vector<float> scores;
  for (const Pile& pile : piles) {
    bar = std::max(bar, pile.bar);
    scores.insert(scores.end(), pile.scores.get(), pile.scores.get() + pile.count);
  }
  out.found = bar < kInf && find(scores, bar, Weight{out.whole.max, slope},
                                 wanted_of(top_p, out.whole.sum, unit), unit, out.nucleus);
  return out;
}

Nucleus select_nucleus(Worker& worker, const Reader& reader, const Weight& weight, double whole,
                       double top_p) {
  const double unit = fixed_unit(reader.row.vocab);
  const uint64_t wanted = wanted_of(top_p, whole, unit);
  const Selected found =
      select(worker, reader, weight.cut, &weight, [=](uint64_t all) { return std::min(wanted, all); });
  return {found.bar, static_cast<double>(found.amount) / unit};
}

}  // namespace specdec
