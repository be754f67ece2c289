// SPDX-License-Identifier: Apache-2.0
#include "attention_scratch.h"

#include <algorithm>

#include "kernels.h"

namespace specdec::attention {
namespace {

constexpr int64_t kPartialBytes = 1280 * 1024;  // that a thread keeps of splits not yet merged
constexpr int64_t kLineFloats = kLineBytes / sizeof(float);

}  // namespace

void TileRows::clear(int64_t n, const void* zeros) {
  count = n;
  visible = 0;
  std::fill_n(rows, 2 * kTile, zeros);
}

void TileRows::set(int64_t i, const void* key, const void* value) {
  keys()[i] = key;
  values()[i] = value;
  visible |= uint64_t{1} << i;
}

Memory::Memory(const Plan& plan)
    : key_pad_(padded(plan.args().head, kPanel)),
      value_pad_(padded(plan.args().value_size, kPanel)),
      zeros_(std::max(key_pad_, value_pad_) * sizeof(float), 0) {
  const AttentionKernels& kernels = *specdec::kernels().attention;
  const int64_t rows = padded(plan.most_rows(), std::max<int64_t>(kernels.lanes, kInPlaceRows));
  state_size_ = state_size(rows);
  splits_at_once_ = std::clamp<int64_t>(kPartialBytes / (state_size_ * sizeof(float)), 2, kMaxSplits);
  const int64_t packed = plan.any_packed();
  struct Part {
    float* Scratch::* place;
    int64_t size;
  };
  const Part parts[] = {
      {&Scratch::queries, rows * key_pad_},
      {&Scratch::partials, splits_at_once_ * state_size_},
      {&Scratch::total, state_size_},
      {&Scratch::rows, packed * rows * value_pad_},
      {&Scratch::node_query, kInPlaceRows * key_pad_},
      {&Scratch::node_state, state_size(kInPlaceRows)},
      {&Scratch::key_rows, packed * kTile * key_pad_},
      {&Scratch::value_panels, packed * value_pad_ / kPanel * kPanelStride},
      {&Scratch::scores, packed * kTile * kernels.block},
  };
  int64_t all = kLineFloats;
  for (const Part& part : parts) all += padded(part.size, kLineFloats) * plan.threads();
  floats_.reset(new float[all]);
  float* at = floats_.get();
  while (reinterpret_cast<uintptr_t>(at) % kLineBytes) ++at;
  scratch_.resize(plan.threads());
  for (Scratch& scratch : scratch_) {
    for (const Part& part : parts) {
      scratch.*part.place = at;
      at += padded(part.size, kLineFloats);
    }
    scratch.path.resize(plan.most_nodes());
  }
}

void Memory::clear(const SoftmaxState& state, int64_t rows) const {
  std::fill_n(state.max, rows, kNoScore);
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.out, rows * value_pad_, 0.0f);
}

void Memory::scale(const SoftmaxState& state, int64_t rows, float factor) const {
  for (int64_t i = 0; i < rows * value_pad_; ++i) state.out[i] *= factor;
}

}  // namespace specdec::attention
