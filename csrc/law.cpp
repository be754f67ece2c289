#include "law.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace specdec {
namespace {

// Moves a sum of weights, and a leader's score with it, to a larger maximum.
void raise(Mass& mass, float max, double slope, Leader* leader = nullptr) {
  if (!(max > mass.max)) return;
  const double shift = std::exp2((static_cast<double>(mass.max) - max) * slope);
  mass.max = max;
  mass.sum *= shift;
  if (leader) leader->score *= shift;
}

void merge(Mass& into, Mass part, double slope, Leader* into_leader = nullptr, Leader leader = {}) {
  into.has_nan |= part.has_nan;
  if (part.max == -kInf) return;
  if (into.max == kInf || part.max == kInf) {
    into.max = kInf;
    return;
  }
  raise(into, part.max, slope, into_leader);
  raise(part, into.max, slope, &leader);
  into.sum += part.sum;
  if (into_leader) into_leader->offer(leader.score, leader.token);
}

float slope_of(double temperature) {
  return static_cast<float>(std::clamp(std::numbers::log2e / temperature, 1e-30, 1e30));
}

// Top scores of a row, descending, with all ties of the k-th. False where ties or NaNs overflow.
constexpr int64_t kMostCandidates = 1024;

bool top_scores(Worker& worker, const Reader& reader, int64_t k, std::vector<float>& out, bool& has_nan) {
  struct alignas(64) Pile {
    std::vector<float> scores;
    int64_t count = 0;
    float bar = -kInf;
    bool nan = false, overflow = false;
  };
  const int64_t room = 2 * k + 2 * kChunk;
  std::vector<Pile> piles(worker.slots());
  const auto thin = [&](Pile& pile, int64_t keep) {
    float* first = pile.scores.data();
    float* last = std::remove_if(first, first + pile.count, [](float x) { return std::isnan(x); });
    pile.nan |= last != first + pile.count;
    if (last - first > keep) {
      std::nth_element(first, first + keep - 1, last, std::greater<float>());
      pile.bar = first[keep - 1];
      last = std::partition(first, last, [&](float x) { return x >= pile.bar; });
    }
    pile.count = last - first;
  };
  for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t, int64_t, int slot) {
    Pile& pile = piles[slot];
    if (pile.scores.empty()) pile.scores.resize(room);
    // -inf is nobody's candidate; the lowest float is.
    const float bar = std::max(pile.bar, -std::numeric_limits<float>::max());
    pile.count += kernels().keep(x, n, bar, pile.scores.data() + pile.count);
    if (pile.count > room - kChunk) thin(pile, k);
    if (pile.count > room - kChunk) pile.overflow = true, pile.count = 0;
  });
  out.clear();
  bool overflow = false;
  for (Pile& pile : piles) {
    thin(pile, k);
    has_nan |= pile.nan;
    overflow |= pile.overflow;
    out.insert(out.end(), pile.scores.begin(), pile.scores.begin() + pile.count);
  }
  if (overflow) return false;
  std::sort(out.begin(), out.end(), std::greater<float>());
  if (static_cast<int64_t>(out.size()) > k)
    out.erase(std::upper_bound(out.begin() + k, out.end(), out[k - 1], std::greater<float>()), out.end());
  return true;
}

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

// The cut that keeps the fewest largest weights whose sum reaches top_p of the whole; `scores` descend.
float nucleus(const std::vector<float>& scores, size_t count, const Weight& weight, double top_p,
              double whole) {
  double sum = 0;
  alignas(64) float z[kGroup], e[kGroup];
  for (size_t i = 0; i < count; ++i) {
    if (i % kGroup == 0) {
      for (int64_t j = 0; j < kGroup; ++j)
        z[j] = i + j < count ? (scores[i + j] - weight.max) * weight.slope : -kInf;
      kernels().exp2(z, e, kGroup);
    }
    sum += e[i % kGroup];
    if (sum >= top_p * whole) return scores[i];
  }
  return -kInf;  // not reached within these
}

double sum_of(const std::vector<float>& scores, size_t count, const Weight& weight) {
  double sum = 0;
  alignas(64) float z[kGroup], e[kGroup];
  for (size_t i = 0; i < count; i += kGroup) {
    for (int64_t j = 0; j < kGroup; ++j)
      z[j] = i + j < count ? (scores[i + j] - weight.max) * weight.slope : -kInf;
    kernels().exp2(z, e, kGroup);
    for (int64_t j = 0; j < kGroup; ++j) sum += e[j];
  }
  return sum;
}

int64_t lowest_allowed(const Row& row) {
  if (row.bitmask)
    for (int64_t token = 0; token < row.vocab; ++token)
      if ((row.bitmask[token >> 5] >> (token & 31)) & 1u) return token;
  return 0;
}

int64_t lowest_at(Worker& worker, const Reader& reader, float value) {
  std::vector<int64_t> found(blocks_of(reader.row.vocab), -1);
  for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t begin, int64_t block, int) {
    if (found[block] >= 0) return;
    const int64_t i = kernels().find(x, n, value);
    if (i >= 0) found[block] = begin + i;
  });
  for (int64_t token : found)
    if (token >= 0) return token;
  return 0;
}

float max_of(Worker& worker, const Reader& reader, bool& has_nan) {
  struct Part {
    float max = -kInf;
    bool has_nan = false;
  };
  std::vector<Part> parts(blocks_of(reader.row.vocab));
  for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t, int64_t block, int) {
    parts[block].max = std::max(parts[block].max, kernels().max(x, n, &parts[block].has_nan));
  });
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
    law.log2_mass = std::log2(mass_of(worker, law.reader, law.weight.slope, -kInf).sum);
  } else {
    return false;
  }
  return true;
}

// Min-p, top-k and top-p as one cut, and the mass above it. `whole`: the mass before cuts, negative = not
// known.
void apply_cuts(Worker& worker, const Sampling& sampling, Law& law, double whole) {
  const int64_t vocab = law.reader.row.vocab;
  Weight& weight = law.weight;
  if (sampling.min_p > 0)
    weight.cut = sampling.min_p >= 1
                     ? weight.max
                     : static_cast<float>(weight.max + std::log2(sampling.min_p) / weight.slope);
  if (sampling.top_k >= 1 && sampling.top_k < vocab)
    weight.cut = std::max(weight.cut,
                          kth_largest(worker, law.reader, static_cast<int64_t>(sampling.top_k), weight.cut));
  if (sampling.top_p < 1) {
    if (whole < 0 || weight.cut > -kInf) whole = mass_of(worker, law.reader, weight.slope, weight.cut).sum;
    std::vector<float> scores;
    bool has_nan = false;
    float cut = -kInf;
    if (top_scores(worker, law.reader, kMostCandidates, scores, has_nan)) {
      size_t count = scores.size();
      while (count > 0 && scores[count - 1] < weight.cut) --count;
      cut = nucleus(scores, count, weight, sampling.top_p, whole);
    }
    if (cut == -kInf) {
      cut = select(worker, law.reader, weight.cut, &weight, [&](uint64_t all) {
        return std::max<uint64_t>(
            static_cast<uint64_t>(std::max(sampling.top_p, 0.0) * static_cast<double>(all)), 1);
      });
    }
    weight.cut = std::max(weight.cut, cut);
  }
  law.log2_mass = std::log2(mass_of(worker, law.reader, weight.slope, weight.cut).sum);
}

// The same where the largest scores are at hand: nothing of the row is read again. `scores`: the top_k
// largest, with ties.
void apply_cuts(const Sampling& sampling, Law& law, const std::vector<float>& scores) {
  Weight& weight = law.weight;
  size_t count = scores.size();
  weight.cut = scores[count - 1];
  if (sampling.min_p > 0) {
    const float cut = sampling.min_p >= 1
                          ? weight.max
                          : static_cast<float>(weight.max + std::log2(sampling.min_p) / weight.slope);
    while (count > 1 && scores[count - 1] < cut) --count;
    weight.cut = std::max(weight.cut, cut);
  }
  double mass = sum_of(scores, count, weight);
  if (sampling.top_p < 1) {
    const float cut = nucleus(scores, count, weight, sampling.top_p, mass);
    while (count > 1 && scores[count - 1] < cut) --count;
    weight.cut = std::max(weight.cut, cut);
    mass = sum_of(scores, count, weight);
  }
  law.log2_mass = std::log2(mass);
}

}  // namespace

double Law::log2_p(int64_t token) const {
  if (point >= 0) return token == point ? 0.0 : -static_cast<double>(kInf);
  const float x = reader.score(token);
  if (!(x >= weight.cut) || x == -kInf) return -static_cast<double>(kInf);
  return (static_cast<double>(x) - weight.max) * weight.slope - log2_mass;
}

Mass mass_of(Worker& worker, const Reader& reader, float slope, float cut) {
  std::vector<Mass> parts(blocks_of(reader.row.vocab));
  for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t, int64_t block, int) {
    Mass& part = parts[block];
    const float max = kernels().max(x, n, &part.has_nan);
    if (max == -kInf || max < cut || part.max == kInf) return;
    raise(part, max, slope);
    if (max < kInf) part.sum += kernels().sum(x, n, Weight{part.max, slope, cut});
  });
  Mass mass;
  for (const Mass& part : parts) merge(mass, part, slope);
  return mass;
}

Law law_of(Worker& worker, const Row& row, const Sampling& sampling) {
  Law law;
  law.reader.row = row;
  bool has_nan = false;
  const bool few = sampling.top_k >= 1 && sampling.top_k <= kMostCandidates && sampling.top_k < row.vocab;
  std::vector<float> scores;
  Mass mass;
  bool listed = false;
  if (sampling.greedy()) {
    mass.max = max_of(worker, law.reader, has_nan);
  } else if (few && top_scores(worker, law.reader, static_cast<int64_t>(sampling.top_k), scores, has_nan)) {
    listed = true;
    if (!scores.empty()) mass.max = scores[0];
  } else {
    mass = mass_of(worker, law.reader, slope_of(sampling.temperature), -kInf);
    has_nan |= mass.has_nan;
  }
  if (has_nan) law.status |= kNaN;
  if (settle_extremes(worker, sampling, law, mass.max)) return law;
  law.weight = Weight{mass.max, slope_of(sampling.temperature), -kInf};
  if (listed)
    apply_cuts(sampling, law, scores);
  else if (sampling.cuts(row.vocab))
    apply_cuts(worker, sampling, law, mass.sum);
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

int64_t draw(Worker& worker, const Law& law, const Stream& stream) {
  if (law.point >= 0) return law.point;
  std::vector<Leader> leaders(blocks_of(law.reader.row.vocab)), hints(worker.slots());
  for_chunks(worker, law.reader, [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    if (begin % kBlock == 0) leaders[block] = hints[slot];
    kernels().race(x, n, law.weight, stream, begin, leaders[block]);
    hints[slot] = leaders[block].hint();
  });
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
  const float slope = slope_of(sampling.temperature);
  std::vector<Part> parts(blocks_of(row.vocab)), hints(worker.slots());
  for_chunks(worker, found.reader, [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    Part &part = parts[block], &hint = hints[slot];
    const float max = kernels().max(x, n, &part.mass.has_nan);
    if (max == -kInf || part.mass.max == kInf) return;
    raise(part.mass, max, slope, &part.leader);
    if (max == kInf) return;
    if (part.leader.token < 0 && hint.leader.score > 0) {
      const double shift = std::exp2((static_cast<double>(hint.mass.max) - part.mass.max) * slope);
      part.leader.score = std::min(hint.leader.score * shift, 1e300);
    }
    part.mass.sum += kernels().race(x, n, Weight{part.mass.max, slope, -kInf}, stream, begin, part.leader);
    hint = {part.mass, part.leader.hint()};
  });
  Part all;
  for (const Part& part : parts) merge(all.mass, part.mass, slope, &all.leader, part.leader);
  if (all.mass.has_nan) found.status |= kNaN;
  if (settle_extremes(worker, sampling, found, all.mass.max)) return draw(worker, found, stream);
  found.weight = Weight{all.mass.max, slope, -kInf};
  found.log2_mass = std::log2(all.mass.sum);
  return all.leader.token;
}

float kth_largest(Worker& worker, const Reader& reader, int64_t k, float cut) {
  if (k >= reader.row.vocab) return -kInf;
  std::vector<float> scores;
  bool has_nan = false;
  if (k <= kMostCandidates && top_scores(worker, reader, k, scores, has_nan))
    return static_cast<int64_t>(scores.size()) < k ? -kInf : scores[k - 1];
  return select(worker, reader, cut, nullptr,
                [k](uint64_t all) { return std::min(all, static_cast<uint64_t>(k)); });
}

double entropy(Worker& worker, const Law& law) {
  if (law.point >= 0) return 0;
  std::vector<double> parts(blocks_of(law.reader.row.vocab));
  for_chunks(worker, law.reader, [&](const float* x, int64_t n, int64_t, int64_t block, int) {
    parts[block] += kernels().sum_weighted_log2(x, n, law.weight);
  });
  double sum = 0;
  for (double part : parts) sum += part;
  return (law.log2_mass - sum / std::exp2(law.log2_mass)) * std::numbers::ln2;
}

}  // namespace specdec
