// SPDX-License-Identifier: Apache-2.0
// Attention of a unit's rows to the prefix: tile by tile, the cache read in place for few rows, or converted
// once for many that are packed.
#pragma once

#include <cstdint>

#include "attention_plan.h"
#include "attention_scratch.h"

namespace specdec::attention {

class Prefix {
 public:
  Prefix(const Plan& plan, const Memory& memory, const Unit& unit);

  // The first position that a row of the unit sees.
  int64_t begin() const { return begin_; }
  // Rows in memory: what states and queries have room for.
  int64_t width() const { return width_; }
  void pack_queries(float* out) const;
  // Adds positions [from, to), which start at a tile. `scratch` is of the thread that runs this.
  void attend(int64_t from, int64_t to, const float* queries, Scratch& scratch,
              const SoftmaxState& state) const;

 private:
  void attend_in_place(int64_t from, int64_t to, const float* queries, const SoftmaxState& state) const;
  void attend_slots(TileRows& now, TileRows& next, const Scoring* scoring, const float* queries,
                    const SoftmaxState& state) const;
  void attend_packed(int64_t from, int64_t to, const float* queries, Scratch& scratch,
                     const SoftmaxState& state) const;
  void find(int64_t head, int64_t from, int64_t end, TileRows& tile) const;
  const float* first_of_rows(int64_t tile, int64_t row, int64_t n, float* out) const;

  const Plan& plan_;
  const Memory& memory_;
  const Unit& unit_;
  const AttentionArgs& args_;
  const Request& request_;
  const AttentionKernels& kernels_;
  const int64_t rows_, width_;
  const bool by_slots_;  // whole tiles of all heads at once
  int64_t begin_, all_see_from_ = 0;
};

// Calls body(row, n) for the blocks of `width` packed rows.
template <class Body>
void for_blocks(const AttentionKernels& kernels, int64_t width, Body&& body) {
  for (int64_t row = 0; row < width; row += kernels.block) body(row, std::min(kernels.block, width - row));
}

}  // namespace specdec::attention
