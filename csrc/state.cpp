// SPDX-License-Identifier: Apache-2.0
#include "state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace specdec {
namespace {

char* at(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }
const char* at(const void* data, int64_t bytes) { return static_cast<const char*>(data) + bytes; }

// Runs body(layer, slot, request, kept) for every layer and request that keeps nodes and has a slot there.
// Requests that by mistake share a slot take it one after the other, on one thread.
template <class Args, class Layer, class Body>
void for_each_state(const Args& args, const Layer* layers, int64_t count, int threads, Body&& body) {
  const int64_t requests = args.paths->requests;
  std::vector<int64_t> next(requests, requests);  // request with the same slot
  std::vector<bool> first(requests, true);
  for (int64_t b = 0; b < requests; ++b) {
    next[b] = std::find(args.slots + b + 1, args.slots + requests, args.slots[b]) - args.slots;
    if (next[b] < requests) first[next[b]] = false;
  }
  Team team(threads);
  team.items(count * requests, 1, [&](Worker& worker, int64_t item) {
    const int64_t layer = item / requests, slot = args.slots[item % requests];
    if (slot < 0 || slot >= layers[layer].slots || !first[item % requests]) return;
    for (int64_t b = item % requests; b < requests; b = next[b])
      if (const int64_t kept = kept_of(*args.paths, b); kept > 0) body(worker, layer, slot, b, kept);
  });
}

template <class Item>
void shift_window(const specdec_windows& w, const specdec_window_inputs& inputs, int64_t slot,
                  const int32_t* path, int64_t start, int64_t kept) {
  for (int64_t c = 0; c < w.channels && w.taps > 0; ++c) {
    char* window = at(w.data, slot * w.slot_stride + c * w.channel_stride);
    const char* input = at(inputs.data, c * inputs.channel_stride);
    for (int64_t tap = 0; tap < w.taps; ++tap) {
      const int64_t from = tap + kept;
      const char* source = from < w.taps ? window + from * w.tap_stride
                                         : input + (start + path[from - w.taps]) * inputs.row_stride;
      std::memcpy(window + tap * w.tap_stride, source, sizeof(Item));
    }
  }
}

void to_floats(const void* data, DType dtype, int64_t first, int64_t n, float* out) {
  if (dtype == SPECDEC_FLOAT32) {
    std::copy_n(static_cast<const float*>(data) + first, n, out);
  } else {
    const uint16_t* halves = static_cast<const uint16_t*>(data) + first;
    (dtype == SPECDEC_BFLOAT16 ? kernels().from_bfloat16 : kernels().from_float16)(halves, out, n);
  }
}

// The matrix of one head while it is replayed, float32, row by row.
class Head {
 public:
  Head(const specdec_matrices& m, int64_t slot, int64_t head)
      : m_(m), base_(slot * m.slot_stride + head * m.head_stride), s_(m.rows * m.columns) {
    for (int64_t r = 0; r < m.rows; ++r) {
      if (m.column_stride == 1 && m.columns > 0) {
        to_floats(m.data, m.dtype, place(r, 0), m.columns, row(r));
      } else {
        for (int64_t c = 0; c < m.columns; ++c) to_floats(m.data, m.dtype, place(r, c), 1, row(r) + c);
      }
    }
  }

  float* row(int64_t r) { return s_.data() + r * m_.columns; }

  void store() {
    const bool whole_rows = m_.column_stride == 1;
    const int64_t run = whole_rows ? m_.columns : 1;
    for (int64_t r = 0; r < m_.rows; ++r)
      for (int64_t c = 0; c < m_.columns; c += run)
        kernels().write(row(r) + c, 1.0f, run, m_.dtype, at(m_.data, place(r, c) * bytes_of(m_.dtype)));
  }

 private:
  int64_t place(int64_t r, int64_t c) const { return base_ + r * m_.row_stride + c * m_.column_stride; }

  const specdec_matrices& m_;
  int64_t base_;
  std::vector<float> s_;
};

void read(const specdec_node_inputs& in, int64_t row, int64_t head, int64_t heads, std::vector<float>& out) {
  const int64_t base = row * in.row_stride + head * in.heads / heads * in.head_stride;
  out.resize(in.size);
  if (in.size > 0) to_floats(in.data, in.dtype, base, in.size, out.data());
}

// s = a s + x y
void decay_and_add(float* s, float a, float x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) s[i] = a * s[i] + x * y[i];
}

void add_scaled(float* sum, float x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x * y[i];
}

// Runs step(state, inputs of the layer, row, head) for the kept nodes of every state, head by head.
template <class Step>
void replay(const specdec_replay_args& args, int threads, Step&& step) {
  for_each_state(args, args.states, args.state_count, threads,
                 [&](Worker& worker, int64_t layer, int64_t slot, int64_t b, int64_t kept) {
                   worker.blocks(args.states[layer].heads, [&](int64_t head, int) {
                     Head state(args.states[layer], slot, head);
                     for (int64_t j = 0; j < kept; ++j)
                       step(state, args.inputs + 4 * layer,
                            start_of(*args.paths, b) + path_of(*args.paths, b)[j], head);
                     state.store();
                   });
                 });
}

}  // namespace

void commit_state(const specdec_commit_state_args& args, int threads) {
  for_each_state(args, args.states, args.state_count, threads,
                 [&](Worker&, int64_t layer, int64_t slot, int64_t b, int64_t kept) {
                   const specdec_states& state = args.states[layer];
                   if (state.row_bytes == 0) return;
                   const int64_t row = start_of(*args.paths, b) + path_of(*args.paths, b)[kept - 1];
                   std::memmove(at(state.data, slot * state.slot_stride),
                                at(args.snapshots[layer].data, row * args.snapshots[layer].row_stride),
                                state.row_bytes);
                 });
}

void replay_conv(const specdec_replay_conv_args& args, int threads) {
  for_each_state(args, args.windows, args.window_count, threads,
                 [&](Worker&, int64_t layer, int64_t slot, int64_t b, int64_t kept) {
                   const specdec_windows& w = args.windows[layer];
                   const auto shift = w.item_bytes == 1   ? shift_window<uint8_t>
                                      : w.item_bytes == 2 ? shift_window<uint16_t>
                                      : w.item_bytes == 4 ? shift_window<uint32_t>
                                                          : shift_window<uint64_t>;
                   shift(w, args.inputs[layer], slot, path_of(*args.paths, b), start_of(*args.paths, b),
                         kept);
                 });
}

void replay_gated_delta(const specdec_replay_args& args, int threads) {
  replay(args, threads, [&](Head& state, const specdec_node_inputs* in, int64_t row, int64_t head) {
    thread_local std::vector<float> k, v, log_decay, beta, d;
    const int64_t heads = in[1].heads, rows = in[0].size, columns = in[1].size;
    read(in[0], row, head, heads, k);
    read(in[1], row, head, heads, v);
    read(in[2], row, head, heads, log_decay);
    read(in[3], row, head, heads, beta);
    const float a = std::exp(log_decay[0]);
    d.assign(columns, 0.0f);
    for (int64_t r = 0; r < rows; ++r) add_scaled(d.data(), k[r], state.row(r), columns);
    for (int64_t c = 0; c < columns; ++c) d[c] = beta[0] * (v[c] - a * d[c]);
    for (int64_t r = 0; r < rows; ++r) decay_and_add(state.row(r), a, k[r], d.data(), columns);
  });
}

void replay_mamba2(const specdec_replay_args& args, int threads) {
  replay(args, threads, [&](Head& state, const specdec_node_inputs* in, int64_t row, int64_t head) {
    thread_local std::vector<float> x, B, dt, A;
    const int64_t heads = in[0].heads, rows = in[0].size, columns = in[1].size;
    read(in[0], row, head, heads, x);
    read(in[1], row, head, heads, B);
    read(in[2], row, head, heads, dt);
    read(in[3], row, head, heads, A);
    const float a = std::exp(dt[0] * A[0]);
    for (int64_t r = 0; r < rows; ++r) decay_and_add(state.row(r), a, dt[0] * x[r], B.data(), columns);
  });
}

}  // namespace specdec
