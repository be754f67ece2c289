// SPDX-License-Identifier: Apache-2.0
#include "law.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "edits.h"

namespace specdec {
namespace {

constexpr double kLeastSlope = 1e-30, kMostSlope = 1e30;  // finite and above 0 in float32
constexpr double kMostScore = 1e300;                      // of a hint; finite

float slope_of(double temperature) {
  return static_cast<float>(std::clamp(std::numbers::log2e / temperature, kLeastSlope, kMostSlope));
}

int64_t lowest_allowed(const Row& row) {
  for (int64_t token = 0; token < row.vocab; ++token)
    if (allowed(row.bitmask, token)) return token;
  return 0;
}

// A row with a forced token is not read. True: the law is settled.
bool settle_forced(Law& law) {
  const Row& row = law.reader.row;
  const int64_t token = row.edits ? row.edits->forced() : -1;
  if (token < 0) return false;
  const bool possible = allowed(row.bitmask, token);
  law.point = possible ? token : lowest_allowed(row);
  if (!possible) law.status |= kEmpty;
  return true;
}

int64_t lowest_at(Worker& worker, const Reader& reader, float value) {
  std::vector<int64_t> found(blocks_of(reader.row.vocab), -1);
  for_chunks(worker, reader, value, [&](const float* x, int64_t n, int64_t begin, int64_t block, int) {
    if (found[block] >= 0) return;
    const int64_t i = kernels().find(x, n, value);
    if (i >= 0) found[block] = begin + i;
  });
  for (int64_t token : found)
    if (token >= 0) return token;
  return 0;
}

float max_of(Worker& worker, Reader& reader, bool& has_nan) {
  struct alignas(64) Part {
    float max = -kInf;
    bool has_nan = false;
  };
  std::vector<Part> parts(worker.slots());
  std::vector<float> maxima(chunks_of(reader.row.vocab));
  const auto below = [&](const float* x, int64_t n, int64_t begin, int64_t, int slot) {
    maxima[begin / kChunk] = kernels().max(x, padded(n), &parts[slot].has_nan);
    return maxima[begin / kChunk] < parts[slot].max;
  };
  for_chunks_unless(worker, reader, below,
                    [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
                      if (!below(x, n, begin, block, slot)) parts[slot].max = maxima[begin / kChunk];
                    });
  reader.maxima = std::move(maxima);
  float max = -kInf;
  for (const Part& part : parts) {
    max = std::max(max, part.max);
    has_nan |= part.has_nan;
  }
  return max;
}

// What every law starts with once the row's maximum is known: empty rows, rows with +inf, greedy. True: it is
// settled.
bool settle_extremes(Worker& worker, const Sampling& sampling, Law& law, float max) {
  if (max == -kInf) {
    law.status |= kEmpty;
    law.point = lowest_allowed(law.reader.row);
  } else if (sampling.greedy()) {
    law.point = lowest_at(worker, law.reader, max);
  } else if (max == kInf) {  // all the mass on the infinite entries, evenly; every cut keeps them all as ties
    law.reader.only_infinite = true;
    law.weight = Weight{};
    law.log2_mass = std::log2(mass_of(worker, law.reader, law.weight.slope, -kInf, &law.reader.maxima).sum);
  } else {
    return false;
  }
  return true;
}

}  // namespace

double Law::log2_p(int64_t token) const {
  if (point >= 0) return token == point ? 0.0 : -static_cast<double>(kInf);
  return log2_p_of(reader.score(token));
}

double Law::log2_p_of(float score) const {
  if (weight.linear) return std::log2(std::max(score, 0.0f));
  if (!(score >= weight.cut) || score == -kInf) return -static_cast<double>(kInf);
  return (static_cast<double>(score) - weight.max) * weight.slope - log2_mass;
}

Law law_of(Worker& worker, const Row& row, const Sampling& sampling) {
  Law law;
  law.reader.row = row;
  if (settle_forced(law)) return law;
  const float slope = sampling.greedy() ? 0 : slope_of(sampling.temperature);
  const bool few = sampling.top_k >= 1 && sampling.top_k <= kMostCandidates && sampling.top_k < row.vocab;
  const bool top_p_first = sampling.top_p_first(row.vocab);
  TopScores top;
  Weighed weighed;
  Mass mass;
  bool listed = false;
  if (sampling.greedy()) {
    mass.max = max_of(worker, law.reader, mass.has_nan);
  } else if (few && top_scores(worker, law.reader, static_cast<int64_t>(sampling.top_k),
                               sampling.whole ? slope : 0, top)) {
    listed = true;
    mass = top.whole;
    mass.has_nan = top.has_nan;
    if (!top.scores.empty()) mass.max = top.scores[0];
    law.reader.maxima = std::move(top.maxima);
  } else {
    if (top_p_first)
      mass = (weighed = weigh_nucleus(worker, law.reader, slope, -kInf, sampling.top_p, &top.maxima)).whole;
    else
      mass = mass_of(worker, law.reader, slope, -kInf, &top.maxima);
    law.reader.maxima = std::move(top.maxima);
  }
  if (mass.has_nan) law.status |= kNaN;
  if (settle_extremes(worker, sampling, law, mass.max)) return law;
  law.weight = Weight{mass.max, slope, -kInf};
  law.whole = mass.sum;
  if (listed)
    law.log2_mass = std::log2(cut_scores(top.scores, sampling, law.weight));
  else if (sampling.cuts(row.vocab))
    law.log2_mass =
        std::log2(cut_row(worker, law.reader, sampling, top_p_first ? &weighed : nullptr, law.weight));
  else
    law.log2_mass = std::log2(mass.sum);
  return law;
}

Law law_of_logprobs(const Row& row) {
  Law law;
  law.reader.row = row;
  law.weight = Weight{};
  return law;
}

Law law_of_probs(const Row& row) {
  Law law;
  law.reader.row = row;
  law.weight.linear = true;
  return law;
}

int32_t status_of_probs(Worker& worker, const Row& row) {
  Reader reader;
  reader.row = row;
  bool has_nan = false;
  const float max = max_of(worker, reader, has_nan);
  return (has_nan ? kNaN : 0) | (max > 0 ? 0 : kEmpty);
}

int64_t draw(Worker& worker, const Law& law, const Stream& stream) {
  if (law.point >= 0) return law.point;
  std::vector<Leader> leaders(blocks_of(law.reader.row.vocab)), hints(worker.slots());
  const auto race = [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    if (leaders[block].score == 0) leaders[block] = hints[slot];
    kernels().race(x, n, law.weight, stream, begin, leaders[block]);
    hints[slot] = leaders[block].hint();
  };
  for_chunks(worker, law.reader, law.least(), race);
  Leader leader;
  for (const Leader& other : leaders) leader.offer(other.score, other.token);
  return std::max<int64_t>(leader.token, 0);
}

int64_t draw_with_law(Worker& worker, const Row& row, const Sampling& sampling, const Stream& stream,
                      Law& found) {
  if (sampling.greedy() || sampling.cuts(row.vocab)) {
    found = law_of(worker, row, sampling);
    return draw(worker, found, stream);
  }
  struct Part {
    Mass mass;
    Leader leader;
  };
  found = Law{};
  found.reader.row = row;
  if (settle_forced(found)) return found.point;
  const float slope = slope_of(sampling.temperature);
  std::vector<Part> parts(blocks_of(row.vocab)), hints(worker.slots());
  std::vector<float> maxima(chunks_of(row.vocab));
  for_chunks(worker, found.reader, [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    Part &part = parts[block], &hint = hints[slot];
    const float max = maxima[begin / kChunk] = kernels().max(x, n, &part.mass.has_nan);
    if (max == -kInf || part.mass.max == kInf) return;
    raise(part.mass, max, slope, &part.leader);
    if (max == kInf) return;
    if (part.leader.token < 0 && hint.leader.score > 0) {
      const double shift = std::exp2((static_cast<double>(hint.mass.max) - part.mass.max) * slope);
      part.leader.score = std::min(hint.leader.score * shift, kMostScore);
    }
    part.mass.sum += kernels().race(x, n, Weight{part.mass.max, slope, -kInf}, stream, begin, part.leader);
    hint = {part.mass, part.leader.hint()};
  });
  Part all;
  for (const Part& part : parts) merge(all.mass, part.mass, slope, &all.leader, part.leader);
  found.reader.maxima = std::move(maxima);
  if (all.mass.has_nan) found.status |= kNaN;
  if (settle_extremes(worker, sampling, found, all.mass.max)) return draw(worker, found, stream);
  found.weight = Weight{all.mass.max, slope, -kInf};
  found.log2_mass = std::log2(all.mass.sum);
  return all.leader.token;
}

double entropy(Worker& worker, const Law& law) {
  if (law.point >= 0) return 0;
  std::vector<double> parts(blocks_of(law.reader.row.vocab));
  for_chunks(worker, law.reader, law.least(), [&](const float* x, int64_t n, int64_t, int64_t block, int) {
    parts[block] += kernels().sum_weighted_log2(x, n, law.weight);
  });
  double sum = 0;
  for (double part : parts) sum += part;
  return (law.log2_mass - sum / std::exp2(law.log2_mass)) * std::numbers::ln2;
}

}  // namespace specdec
