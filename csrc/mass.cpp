// SPDX-License-Identifier: Apache-2.0
#include "mass.h"

#include <cmath>
#include <numeric>
#include <vector>

namespace specdec {

void raise(Mass& mass, float max, double slope, Leader* leader) {
  if (!(max > mass.max)) return;
  const double shift = std::exp2((static_cast<double>(mass.max) - max) * slope);
  mass.max = max;
  mass.sum *= shift;
  if (leader) leader->score *= shift;
}

void merge(Mass& into, Mass part, double slope, Leader* into_leader, Leader leader) {
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

double sum_of(Worker& worker, const Reader& reader, const Weight& weight) {
  std::vector<double> parts(blocks_of(reader.row.vocab));
  for_chunks(worker, reader, [&](const float* x, int64_t n, int64_t, int64_t block, int) {
    parts[block] += kernels().sum(x, n, weight);
  });
  return std::accumulate(parts.begin(), parts.end(), 0.0);
}

Mass add_chunk(Mass& mass, const float* x, int64_t n, float max, float slope, float cut) {
  if (max == -kInf || max < cut || mass.max == kInf) return {};
  raise(mass, max, slope);
  Mass added{mass.max, 0};
  if (max < kInf) added.sum = kernels().sum(x, n, Weight{mass.max, slope, cut});
  mass.sum += added.sum;
  return added;
}

Mass mass_of(Worker& worker, const Reader& reader, float slope, float cut, std::vector<float>* maxima) {
  std::vector<Mass> parts(blocks_of(reader.row.vocab));
  if (maxima) maxima->resize(chunks_of(reader.row.vocab));
  for_chunks(worker, reader, cut, [&](const float* x, int64_t n, int64_t begin, int64_t block, int) {
    const float max = kernels().max(x, n, &parts[block].has_nan);
    if (maxima) (*maxima)[begin / kChunk] = max;
    add_chunk(parts[block], x, n, max, slope, cut);
  });
  return merged(parts, slope);
}

Mass merged(const std::vector<Mass>& parts, double slope) {
  Mass mass;
  for (const Mass& part : parts) merge(mass, part, slope);
  return mass;
}

std::vector<float> weights_of(const std::vector<float>& scores, const Weight& weight) {
  std::vector<float> weights(padded(scores.size()), -kInf);
  size_t count = 0;
  for (; count < scores.size() && scores[count] >= weight.cut; ++count)
    weights[count] = (scores[count] - weight.max) * weight.slope;
  kernels().exp2(weights.data(), weights.data(), static_cast<int64_t>(weights.size()));
  weights.resize(count);
  return weights;
}

}  // namespace specdec
