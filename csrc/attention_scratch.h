// SPDX-License-Identifier: Apache-2.0
// Memory of a call of tree attention: what each thread works in, and where a tile's rows lie.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention_plan.h"

namespace specdec::attention {

// Where a tile's rows lie. A position without a page, or outside every row's window, is not visible and has a
// row of zeros.
struct TileRows {
  const void* rows[2 * kTile];  // keys, then values
  int64_t count = 0;
  uint64_t visible = 0;

  const void** keys() { return rows; }
  const void** values() { return rows + kTile; }
  void clear(int64_t n, const void* zeros);
  void set(int64_t i, const void* key, const void* value);
};

// Memory of one thread.
struct Scratch {
  // Of the unit that it works on.
  float *queries, *partials, *total, *rows, *node_query, *node_state;
  std::vector<int32_t> path;  // nodes from the root, or the window's first, to one node; by depth
  // Of the tile that it works on, which may be of another thread's unit.
  float *key_rows, *value_panels, *scores;
};

class Memory {
 public:
  explicit Memory(const Plan& plan);

  Scratch& of(int slot) { return scratch_[slot]; }
  const void* zeros() const { return zeros_.data(); }  // a row
  int64_t key_pad() const { return key_pad_; }         // elements of a key or query, padded to kPanel
  int64_t value_pad() const { return value_pad_; }
  int64_t splits_at_once() const { return splits_at_once_; }

  // The softmax of `rows` rows in some of the memory; that of split i of those at hand.
  SoftmaxState state(float* memory, int64_t rows) const { return {memory, memory + rows, memory + 2 * rows}; }
  SoftmaxState partial(const Scratch& own, int64_t i, int64_t rows) const {
    return state(own.partials + i * state_size_, rows);
  }
  void clear(const SoftmaxState& state, int64_t rows) const;
  // Multiplies the values of rows in place.
  void scale(const SoftmaxState& state, int64_t rows, float factor) const;
  // That of the rows from `row` on.
  SoftmaxState from(const SoftmaxState& state, int64_t row) const {
    return {state.max + row, state.sum + row, state.out + row * value_pad_};
  }

 private:
  int64_t state_size(int64_t rows) const { return rows * (value_pad_ + 2); }

  const int64_t key_pad_, value_pad_;
  const std::vector<unsigned char> zeros_;
  int64_t state_size_, splits_at_once_;
  std::unique_ptr<float[]> floats_;
  std::vector<Scratch> scratch_;
};

}  // namespace specdec::attention
