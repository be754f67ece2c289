// SPDX-License-Identifier: Apache-2.0
#include "children.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace specdec {
namespace {

// Descending scores, ties to the lowest token.
bool ahead(const Racer& a, const Racer& b) {
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

void keep_best(std::vector<Racer>& racers, int64_t k) {
  std::sort(racers.begin(), racers.end(), ahead);
  if (static_cast<int64_t>(racers.size()) > k) racers.resize(k);
}

// The first k finishers of a race over the weights of a reader's row, in their order.
std::vector<Racer> finishers(Worker& worker, const Reader& reader, const Weight& weight, const Stream& stream,
                             int64_t k) {
  const int64_t blocks = blocks_of(reader.row.vocab);
  std::vector<Racer> racers(blocks * k);
  std::vector<Leaders> leaders(blocks);
  std::vector<double> bars(worker.slots(), 0.0);  // what the k best of a block that the slot has seen score
  for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    Leaders& mine = leaders[block];
    if (begin % kBlock == 0) mine = Leaders{racers.data() + block * k, k, 0, bars[slot]};
    kernels().race_many(x, n, weight, stream, begin, mine);
    bars[slot] = std::max(bars[slot], mine.hint());
  });
  std::vector<Racer> out;
  for (const Leaders& each : leaders) out.insert(out.end(), each.racers, each.racers + each.count);
  keep_best(out, k);
  return out;
}

// Appends draws without replacement to `tokens`, which are not drawn again, until there are `k` of them or
// nothing is left. A weight is a float32 relative to the row's maximum, so what lies too far below it is only
// raced for once that is gone.
void draw_more(Worker& worker, const Law& law, const Stream& stream, size_t k, std::vector<int64_t>& tokens) {
  Reader reader = law.reader;
  std::vector<int64_t> excluded;
  while (tokens.size() < k) {
    excluded = tokens;
    std::sort(excluded.begin(), excluded.end());
    reader.excluded = {excluded.data(), static_cast<int64_t>(excluded.size())};
    Weight weight = law.weight;
    if (!tokens.empty()) weight.max = mass_of(worker, reader, weight.slope, weight.cut).max;
    if (!(std::exp2(law.log2_p_of(weight.max)) > 0)) return;
    for (const Racer& racer : finishers(worker, reader, weight, stream, k - tokens.size()))
      tokens.push_back(racer.token);
  }
}

// The k largest scores at or above the law's cut.
std::vector<int64_t> likeliest(Worker& worker, const Law& law, int64_t k) {
  if (k == 0) return {};
  const Reader& reader = law.reader;
  const float lowest = std::max(law.weight.cut, -std::numeric_limits<float>::max());
  const float bar = std::max(kth_largest(worker, reader, k, law.weight.cut), lowest);
  std::vector<std::vector<Racer>> found(blocks_of(reader.row.vocab));
  for_chunks(worker, reader, bar, [&](const float* x, int64_t n, int64_t begin, int64_t block, int) {
    for (int64_t i = 0; i < n; ++i)
      if (x[i] >= bar) found[block].push_back({x[i], begin + i});
    if (static_cast<int64_t>(found[block].size()) > kChunk) keep_best(found[block], k);
  });
  std::vector<Racer> all;
  for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
  keep_best(all, k);
  std::vector<int64_t> tokens;
  for (const Racer& racer : all)
    if (law.p(racer.token) > 0) tokens.push_back(racer.token);
  return tokens;
}

std::vector<int64_t> children(Worker& worker, const Law& law, const specdec_children_args& args, int64_t n) {
  const auto stream = [&](int64_t ordinal) {
    return Stream(args.seeds[n], args.positions[n], static_cast<Purpose>(args.purpose), args.nodes[n],
                  ordinal);
  };
  const int64_t k = args.k;
  std::vector<int64_t> tokens;
  if (law.status & kEmpty) return tokens;
  if (args.method == SPECDEC_CHILDREN_INDEPENDENT) {
    for (int64_t i = 0; i < k; ++i) tokens.push_back(draw(worker, law, stream(i)));
  } else if (law.point >= 0) {
    if (args.method == SPECDEC_CHILDREN_HYBRID && k > 1) tokens.push_back(-1);  // nothing is left to sample
    tokens.push_back(law.point);
  } else if (args.method == SPECDEC_CHILDREN_WITHOUT_REPLACEMENT) {
    draw_more(worker, law, stream(0), k, tokens);
  } else if (args.method == SPECDEC_CHILDREN_TOP_K) {
    tokens = likeliest(worker, law, k);
  } else {
    tokens = likeliest(worker, law, k - 1);
    const size_t chosen = tokens.size();
    draw_more(worker, law, stream(0), tokens.size() + 1, tokens);
    if (tokens.size() == chosen) tokens.push_back(-1);
    std::rotate(tokens.begin(), tokens.end() - 1, tokens.end());
  }
  return tokens;
}

}  // namespace

void sample_children(const specdec_children_args& args, int threads) {
  Team team(threads_for(args.logits->count * args.logits->size, threads));
  team.items(args.logits->count, grain_of(args.logits->size), [&](Worker& worker, int64_t n) {
    const Law law = law_of(worker, row_of(*args.logits, n), sampling_of(args.sampling, n));
    const std::vector<int64_t> tokens = children(worker, law, args, n);
    for (int64_t i = 0; i < args.k; ++i) {
      const int64_t token = i < static_cast<int64_t>(tokens.size()) ? tokens[i] : -1;
      args.out_tokens[n * args.k + i] = token;
      args.out_scores[n * args.k + i] = token < 0 ? -kInf : static_cast<float>(law.logprob(token));
    }
  });
}

}  // namespace specdec
