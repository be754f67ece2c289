// SPDX-License-Identifier: Apache-2.0
// Recurrent states after verification: copied from a snapshot of the last kept node, or rebuilt from the
// inputs of the kept nodes.
#pragma once

#include <cstdint>
#include <vector>

#include "path.h"
#include "view.h"

namespace specdec {

// Whose state is to become the one after its kept path.
struct Commits {
  specdec_paths paths;
  const int64_t* slots = nullptr;  // [B], outside a layer's range = none
};

// Strides in bytes.
struct StateRows {
  int64_t address, slots, slot_stride, row_bytes;
};
struct Snapshots {
  int64_t address, row_stride;
};
void commit_state(const Commits& commits, const std::vector<StateRows>& states,
                  const std::vector<Snapshots>& snapshots, int threads);

// [slots, channels, taps], the latest input last; strides in bytes.
struct Windows {
  int64_t address, slots, channels, taps, slot_stride, channel_stride, tap_stride, item_bytes;
};
struct WindowInputs {
  int64_t address, row_stride, channel_stride;
};
void replay_conv(const Commits& commits, const std::vector<Windows>& windows,
                 const std::vector<WindowInputs>& inputs, int threads);

// [slots, heads, rows, columns]; strides in elements.
struct Matrices {
  int64_t address;
  DType dtype;
  int64_t slots, heads, rows, columns, slot_stride, head_stride, row_stride, column_stride;
};
// [R, heads, size] with contiguous vectors, or scalars of size 1; strides in elements. Neighbouring heads of
// the states share one where there are fewer.
struct NodeInputs {
  int64_t address;
  DType dtype;
  int64_t heads, size, row_stride, head_stride;
};
// S = a S + k d^T with a = exp(log_decay), d = beta (v - a S^T k); inputs: keys, values, log_decay, beta.
void replay_gated_delta(const Commits& commits, const std::vector<Matrices>& states,
                        const std::vector<std::vector<NodeInputs>>& inputs, int threads);
// S = exp(dt A) S + dt x B^T; inputs: x, B, dt, and A as the same for every row.
void replay_mamba2(const Commits& commits, const std::vector<Matrices>& states,
                   const std::vector<std::vector<NodeInputs>>& inputs, int threads);

}  // namespace specdec
