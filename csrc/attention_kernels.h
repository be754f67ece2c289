// SPDX-License-Identifier: Apache-2.0
// The vector kernels of tree attention, one table for each instruction set. Every row (one query head at one
// node) is computed by the same additions in the same order by `attend_packed` and `attend_in_place`,
// whatever its neighbours are: scores add up over the head's elements in order, outputs over keys in order,
// weights in kParts interleaved sums, and keys come in tiles of kTile. `attend_slots` alone adds scores up in
// lanes.
#pragma once

#include <cstdint>

#include "view.h"

namespace specdec {

inline constexpr int kTile = 64;   // keys seen at a time
inline constexpr int kParts = 16;  // partial sums of a tile's weights
inline constexpr int kPanel = 16;  // elements of a value row that lie together
// Floats from panel to panel: a line more than a tile, or lines of all panels would compete for one set of
// the first-level cache.
inline constexpr int kPanelStride = kTile * kPanel + kPanel;
inline constexpr int kInPlaceRows = 8;     // rows of the kernels that read the cache in place
inline constexpr int kMaxHeads = 16;       // of a tile read slot by slot
inline constexpr int kMaxBlock = 64;       // packed rows that a kernel takes at a time, on the widest target
inline constexpr int64_t kLineBytes = 64;  // of a cache line
inline constexpr float kNoScore = -3.0e38f;  // the maximum before any score; finite, so that differences are

inline constexpr int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// How scores become base-2 logarithms of weights: score * factor, or bound * tanh(score * factor).
struct Scoring {
  float factor = 1;
  float bound = 0;  // 0 = none
};

// The running softmax of some rows: weights are relative to 2^max, `sum` is theirs, `out` the weighted
// values. Packed rows: out[element][row]; rows in place: out[row][element], padded to kPanel.
struct SoftmaxState {
  float* max = nullptr;
  float* sum = nullptr;
  float* out = nullptr;
};

// Up to kTile keys. `visible` has a bit for each; `first`, where given, has for every row the first
// index that it sees.
struct Keys {
  int64_t count = 0;
  uint64_t visible = 0;
  const float* first = nullptr;
};

// A tile converted to float32: keys [padded count][key_stride], values [panel][kTile][kPanel], a
// panel every kPanelStride floats.
struct Tile {
  Keys keys;
  const float* key_rows = nullptr;
  const float* value_panels = nullptr;
  int64_t key_stride = 0;
};

// Rows that the caller holds, each at its own address.
struct RowList {
  const void* const* rows = nullptr;
  DType dtype = SPECDEC_FLOAT32;
  int64_t size = 0;  // elements of a row
};

// What to prefetch while computing: `count` rows of `bytes` bytes.
struct Prefetch {
  const void* const* rows = nullptr;
  int64_t count = 0;
  int64_t bytes = 0;
  int64_t done = 0;  // bytes of the first row already asked for

  int64_t lines() const { return count * ((bytes + kLineBytes - 1) / kLineBytes); }
};

// A whole tile of several heads, all of it visible: where head 0 of its keys lies, then of its values, then
// of the keys that come next; the other heads follow at a distance.
struct Slots {
  const void* rows[3 * kTile];
  DType dtype = SPECDEC_FLOAT32;
  int64_t heads = 1, key_size = 0, value_size = 0;  // sizes: multiples of kPanel
  int64_t key_step = 0, value_step = 0;             // bytes from head to head
  const Scoring* scoring = nullptr;                 // of each head
};

struct AttentionKernels {
  int64_t lanes;  // packed rows come in multiples of it
  int64_t block;  // packed rows that one call of `attend_packed` takes, at most

  // Rows to float32. A null row counts as zeros. pack_columns: out[element][row], rows padded to `lanes`;
  // pack_rows: out[row][stride]; pack_panels: out[panel][kTile][kPanel].
  void (*pack_columns)(const RowList& in, int64_t count, float* out);
  void (*pack_rows)(const RowList& in, int64_t count, int64_t stride, float* out);
  void (*pack_panels)(const RowList& in, int64_t count, float* out);

  // One tile for a block of packed rows; `scratch` holds kTile * block floats.
  void (*attend_packed)(const Tile& tile, const Scoring& scoring, const float* queries, int64_t head,
                        int64_t rows, const SoftmaxState& state, int64_t value_size, float* scratch,
                        Prefetch& prefetch);
  // One tile read where it lies, for up to kInPlaceRows rows; queries [row][padded head]. `keys` lists
  // something readable up to a multiple of kParts.
  void (*attend_in_place)(const RowList& keys, const RowList& values, const Keys& which,
                          const Scoring& scoring, const float* queries, int64_t rows,
                          const SoftmaxState& state, Prefetch& during_keys, Prefetch& during_values);
  // The same for heads at once, a few slots at a time, which is the order of an NHD cache in memory; queries
  // and states have kInPlaceRows rows for each head, of which at most `lanes` / 2 are taken: with more, a
  // vector of values is read for too few products.
  void (*attend_slots)(const Slots& slots, const float* queries, int64_t rows, const SoftmaxState& state);

  // Adds the softmax of the same rows over other keys: a block of packed rows, or rows in place.
  void (*merge_packed)(const SoftmaxState& state, const SoftmaxState& other, int64_t rows,
                       int64_t value_size);
  void (*merge_rows)(const SoftmaxState& state, const SoftmaxState& other, int64_t rows, int64_t value_size);
  // Packed rows to rows in place, times `scale`.
  void (*unpack)(const float* in, int64_t rows, int64_t value_size, float scale, float* out);
};

}  // namespace specdec
