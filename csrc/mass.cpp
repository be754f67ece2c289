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

}  // namespace specdec
