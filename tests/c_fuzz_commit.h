// SPDX-License-Identifier: Apache-2.0
// Random calls of the functions that change caches and states, for c_fuzz.c.
#include "c_fuzz.h"

// Mostly paths: 0, then nodes that ascend.
static specdec_paths kept(int64_t requests, int64_t nodes) {
  const int64_t width = between(1, 7);
  int32_t* path = tree(requests * width);
  for (int64_t i = 0; i < requests * width; ++i)
    if (!rarely(9)) path[i] = (int32_t)(i % width + (i % width > 1));
  return (specdec_paths){SPECDEC_STRUCT(specdec_paths),        .nodes = path, .width = width,
                         .cu_nodes = offsets(requests, nodes), .rows = nodes, .requests = requests};
}

static specdec_result fuzz_commit(int32_t threads) {
  const int64_t requests = below(4), nodes = requests * between(0, 7), count = below(3);
  const int64_t page_size = between(1, 9), table_width = below(6);
  specdec_paths paths = kept(requests, nodes);
  specdec_cache caches[2];
  specdec_new_rows new_rows[2];
  for (int64_t c = 0; c < count; ++c) {
    const int64_t pages = between(0, 9), heads = between(1, 3), bytes = below(20);
    caches[c] = (specdec_cache){memory(pages * page_size * heads * bytes),
                                pages,
                                page_size * heads * bytes,
                                bytes,
                                heads,
                                page_size * bytes,
                                bytes};
    new_rows[c] = (specdec_new_rows){memory(nodes * heads * bytes), heads * bytes, bytes};
    if (rarely(20)) caches[c].page_stride = -1;
    if (rarely(20)) caches[c].data = NULL;
  }
  specdec_commit_args args = {SPECDEC_STRUCT(specdec_commit_args),
                              .caches = caches,
                              .cache_count = count,
                              .cache_struct_size = sizeof caches[0],
                              .new_rows_struct_size = sizeof new_rows[0],
                              .paths = &paths,
                              .block_table = ints(requests * table_width, 9),
                              .table_width = table_width,
                              .prefix_lens = ints(requests, 40),
                              .page_size = page_size,
                              .out_lengths = memory(requests * 4),
                              .out_pages_kept = memory(requests * 4)};
  if (rarely(2)) args.new_rows = new_rows;
  spoil(&args, sizeof args, 0, 0);
  if (rarely(4)) spoil(&paths, sizeof paths, 0, 0);
  return specdec_commit_kv(&args, threads);
}

static specdec_result fuzz_states(int32_t threads) {
  const int64_t requests = below(4), nodes = requests * between(0, 7), layers = below(3);
  const int64_t slots = below(4), bytes = below(20);
  specdec_paths paths = kept(requests, nodes);
  specdec_states states[2];
  specdec_snapshots snapshots[2];
  for (int64_t i = 0; i < layers; ++i) {
    states[i] = (specdec_states){memory(slots * bytes), slots, rarely(20) ? -1 : bytes, bytes};
    snapshots[i] = (specdec_snapshots){memory(nodes * bytes), bytes};
  }
  specdec_commit_state_args args = {SPECDEC_STRUCT(specdec_commit_state_args),
                                    .paths = &paths,
                                    .slots = longs(requests, slots),
                                    .states = states,
                                    .snapshots = snapshots,
                                    .state_count = layers,
                                    .snapshot_count = layers,
                                    .state_struct_size = sizeof states[0],
                                    .snapshot_struct_size = sizeof snapshots[0]};
  spoil(&args, sizeof args, 0, 0);
  if (rarely(4)) spoil(&paths, sizeof paths, 0, 0);
  return specdec_commit_state(&args, threads);
}

static specdec_result fuzz_windows(int32_t threads) {
  const int64_t requests = below(4), nodes = requests * between(0, 7), layers = below(3);
  const int64_t slots = below(4), channels = below(5), taps = below(6), item = 1 << below(4);
  specdec_paths paths = kept(requests, nodes);
  specdec_windows windows[2];
  specdec_window_inputs inputs[2];
  for (int64_t i = 0; i < layers; ++i) {
    windows[i] = (specdec_windows){memory(slots * channels * taps * item),
                                   slots,
                                   channels,
                                   taps,
                                   channels * taps * item,
                                   taps * item,
                                   item,
                                   rarely(20) ? 3 : item};
    inputs[i] = (specdec_window_inputs){memory(nodes * channels * item), channels * item, item};
  }
  specdec_replay_conv_args args = {SPECDEC_STRUCT(specdec_replay_conv_args),
                                   .paths = &paths,
                                   .slots = longs(requests, slots),
                                   .windows = windows,
                                   .inputs = inputs,
                                   .window_count = layers,
                                   .input_count = layers,
                                   .window_struct_size = sizeof windows[0],
                                   .input_struct_size = sizeof inputs[0]};
  spoil(&args, sizeof args, 0, 0);
  return specdec_replay_conv(&args, threads);
}

static specdec_node_inputs node_inputs(int64_t nodes, int64_t heads, int64_t size) {
  const specdec_dtype dtype = (specdec_dtype)below(3);
  return (specdec_node_inputs){scores(nodes * heads * size, dtype), dtype, heads, size, heads * size, size};
}

static specdec_result fuzz_replay(int32_t threads) {
  const int64_t requests = below(4), nodes = requests * between(0, 7), layers = below(3), slots = below(4);
  const int64_t heads = between(1, 4), rows = below(6), columns = below(40), gated = below(2);
  specdec_paths paths = kept(requests, nodes);
  specdec_matrices states[2];
  specdec_node_inputs inputs[8];
  for (int64_t i = 0; i < layers; ++i) {
    const specdec_dtype dtype = (specdec_dtype)below(3);
    states[i] = (specdec_matrices){scores(slots * heads * rows * columns, dtype),
                                   dtype,
                                   slots,
                                   heads,
                                   rows,
                                   columns,
                                   heads * rows * columns,
                                   rows * columns,
                                   columns,
                                   1};
    inputs[4 * i] = node_inputs(nodes, gated ? between(1, heads) : heads, rows);
    inputs[4 * i + 1] = node_inputs(nodes, gated ? heads : between(1, heads), columns);
    inputs[4 * i + 2] = node_inputs(nodes, between(1, heads), 1);
    inputs[4 * i + 3] = node_inputs(nodes, between(1, heads), 1);
    if (rarely(20)) inputs[4 * i + below(4)].size += 1;  // not the state's
    if (rarely(20)) inputs[4 * i + below(4)].heads = 0;
  }
  specdec_replay_args args = {SPECDEC_STRUCT(specdec_replay_args),
                              .paths = &paths,
                              .slots = longs(requests, slots),
                              .states = states,
                              .inputs = inputs,
                              .state_count = layers,
                              .input_count = 4 * layers,
                              .state_struct_size = sizeof states[0],
                              .input_struct_size = sizeof inputs[0]};
  spoil(&args, sizeof args, 0, 0);
  return gated ? specdec_replay_gated_delta(&args, threads) : specdec_replay_mamba2(&args, threads);
}
