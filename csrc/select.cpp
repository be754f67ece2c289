// SPDX-License-Identifier: Apache-2.0
#include "select.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace specdec {
namespace {

// Floats in the order of unsigned integers.
uint32_t key_of(float x) {
  x += 0.0f;  // -0 is 0
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

float of_key(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7FFFFFFFu : ~key;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace

Selected select(Worker& worker, const Reader& reader, float cut, const Weight* weight,
                const std::function<uint64_t(uint64_t)>& goal) {
  constexpr int kBits[3] = {11, 11, 10};
  const float lowest = std::max(cut, -std::numeric_limits<float>::max());
  const double unit = fixed_unit(reader.row.vocab);
  std::vector<std::vector<uint64_t>> bins(worker.slots());
  uint32_t prefix = 0;
  uint64_t above = 0, wanted = 0;
  for (int level = 0, shift = 32; level < 3; ++level) {
    shift -= kBits[level];
    const uint32_t size = 1u << kBits[level];
    for (auto& b : bins) b.clear();
    for_chunks(worker, reader, lowest, [&](const float* x, int64_t n, int64_t, int64_t, int slot) {
      auto& bin = bins[slot];
      if (bin.empty()) bin.resize(size);
      alignas(64) float z[kChunk], e[kChunk];
      if (weight) {
        for (int64_t i = 0; i < n; ++i) z[i] = (x[i] - weight->max) * weight->slope;
        kernels().exp2(z, e, n);
      }
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t key = key_of(x[i]);
        if (level > 0 && key >> (shift + kBits[level]) != prefix) continue;
        // What is not counted adds 0, without a branch.
        const uint64_t amount = weight ? fixed(e[i], unit) : 1;
        bin[(key >> shift) & (size - 1)] += x[i] >= lowest ? amount : 0;
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
    if (level == 2) above += sum[found];
  }
  return {of_key(prefix), above};
}

}  // namespace specdec
