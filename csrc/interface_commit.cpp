// SPDX-License-Identifier: Apache-2.0
// The functions of specdec.h that change caches and states after verification.
#include "check.h"
#include "commit.h"
#include "state.h"

namespace specdec {
namespace {

// Puts a checked copy in place of the caller's paths.
void take_paths(const Check& check, const specdec_paths*& given, specdec_paths& paths) {
  check.required("paths", given);
  check.replace("paths", given, paths);
  const Check in = check.in("paths");
  in.value("width", paths.width, 0, kMostItems);
  in.value("rows", paths.rows, 0, kMostItems);
  in.value("requests", paths.requests, 0, kMostItems);
  in.array("nodes", paths.nodes, paths.requests, paths.width);
  in.array("cu_nodes", paths.cu_nodes, paths.requests + 1);
}

void check_commit(const Check& check, const specdec_commit_args& args) {
  const specdec_paths& paths = *args.paths;
  check.value("cache_count", args.cache_count, 0, kMostItems);
  check.value("table_width", args.table_width, 0, kMostItems);
  check.value("page_size", args.page_size, 1, kMostItems);
  check.array("caches", args.caches, args.cache_count);
  check.optional_array("new_rows", args.new_rows, args.cache_count);
  check.array("block_table", args.block_table, paths.requests, args.table_width);
  check.array("prefix_lens", args.prefix_lens, paths.requests);
  check.array("out_lengths", args.out_lengths, paths.requests);
  check.array("out_pages_kept", args.out_pages_kept, paths.requests);
  for (int64_t c = 0; c < args.cache_count; ++c) {
    const specdec_cache& cache = args.caches[c];
    const Check in_cache = check.in("caches[i]");
    in_cache.value("pages", cache.pages, 0, kMostItems);
    in_cache.value("heads", cache.heads, 0, kMostItems);
    in_cache.value("row_bytes", cache.row_bytes, 0);
    in_cache.memory("data", cache.data, 1, cache.row_bytes,
                    {{cache.pages, cache.page_stride},
                     {args.page_size, cache.slot_stride},
                     {cache.heads, cache.head_stride}});
    if (!args.new_rows) continue;
    const specdec_new_rows& rows = args.new_rows[c];
    check.in("new_rows[i]")
        .memory("data", rows.data, 1, cache.row_bytes,
                {{paths.rows, rows.row_stride}, {cache.heads, rows.head_stride}});
  }
}

// Puts checked paths in place of the caller's; there are as many inputs or snapshots as the layers need.
template <class Args>
void take_layers(const Check& check, Args& args, specdec_paths& paths, const char* count_name, int64_t count,
                 int64_t expected) {
  take_paths(check, args.paths, paths);
  check.array("slots", args.slots, paths.requests);
  check.value(count_name, count, expected, expected);
}

void check_states(const Check& check, const specdec_commit_state_args& args) {
  check.element<specdec_states>("state_struct_size", args.state_struct_size);
  check.element<specdec_snapshots>("snapshot_struct_size", args.snapshot_struct_size);
  check.array("states", args.states, args.state_count);
  check.array("snapshots", args.snapshots, args.state_count);
  for (int64_t i = 0; i < args.state_count; ++i) {
    const specdec_states& state = args.states[i];
    const Check in_state = check.in("states[i]");
    in_state.value("slots", state.slots, 0, kMostItems);
    in_state.value("row_bytes", state.row_bytes, 0);
    in_state.memory("data", state.data, 1, state.row_bytes, {{state.slots, state.slot_stride}});
    const specdec_snapshots& snapshot = args.snapshots[i];
    check.in("snapshots[i]")
        .memory("data", snapshot.data, 1, state.row_bytes, {{args.paths->rows, snapshot.row_stride}});
  }
}

void check_windows(const Check& check, const specdec_replay_conv_args& args) {
  check.element<specdec_windows>("window_struct_size", args.window_struct_size);
  check.element<specdec_window_inputs>("input_struct_size", args.input_struct_size);
  check.array("windows", args.windows, args.window_count);
  check.array("inputs", args.inputs, args.window_count);
  for (int64_t i = 0; i < args.window_count; ++i) {
    const specdec_windows& window = args.windows[i];
    const Check in_window = check.in("windows[i]");
    in_window.value("slots", window.slots, 0, kMostItems);
    in_window.value("channels", window.channels, 0, kMostItems);
    in_window.value("taps", window.taps, 0, kMostItems);
    const int64_t bytes = window.item_bytes;
    if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8)
      in_window.refuse(SPECDEC_ERROR_VALUE, "item_bytes", "must be 1, 2, 4 or 8, got %lld",
                       static_cast<long long>(bytes));
    in_window.memory("data", window.data, 1, bytes,
                     {{window.slots, window.slot_stride},
                      {window.channels, window.channel_stride},
                      {window.taps, window.tap_stride}});
    const specdec_window_inputs& input = args.inputs[i];
    check.in("inputs[i]")
        .memory("data", input.data, 1, bytes,
                {{args.paths->rows, input.row_stride}, {window.channels, input.channel_stride}});
  }
}

// Inputs of a layer that has `heads` heads; size 0: as it says.
void check_input(const Check& check, const specdec_node_inputs& input, int64_t rows, int64_t most_heads,
                 int64_t size) {
  check.value("dtype", input.dtype, SPECDEC_FLOAT32, SPECDEC_FLOAT16);
  check.value("heads", input.heads, most_heads ? 1 : 0, most_heads);
  check.value("size", input.size, size, size);
  const int64_t unit = bytes_of(input.dtype);
  check.memory("data", input.data, unit, size * unit,
               {{rows, input.row_stride}, {input.heads, input.head_stride}});
}

// `full` is the input that has a head for each of the state's.
void check_replay(const Check& check, const specdec_replay_args& args, int full) {
  check.element<specdec_matrices>("state_struct_size", args.state_struct_size);
  check.element<specdec_node_inputs>("input_struct_size", args.input_struct_size);
  check.array("states", args.states, args.state_count);
  check.array("inputs", args.inputs, args.state_count, 4);
  for (int64_t i = 0; i < args.state_count; ++i) {
    const specdec_matrices& state = args.states[i];
    const Check in_state = check.in("states[i]"), in_input = check.in("inputs[i]");
    in_state.value("dtype", state.dtype, SPECDEC_FLOAT32, SPECDEC_FLOAT16);
    in_state.value("slots", state.slots, 0, kMostItems);
    in_state.value("heads", state.heads, 0, kMostItems);
    in_state.value("rows", state.rows, 0, kMostItems);
    in_state.value("columns", state.columns, 0, kMostItems);
    const int64_t unit = bytes_of(state.dtype), sizes[4] = {state.rows, state.columns, 1, 1};
    in_state.memory("data", state.data, unit, unit,
                    {{state.slots, state.slot_stride},
                     {state.heads, state.head_stride},
                     {state.rows, state.row_stride},
                     {state.columns, state.column_stride}});
    const specdec_node_inputs* inputs = args.inputs + 4 * i;
    for (int k = 0; k < 4; ++k) check_input(in_input, inputs[k], args.paths->rows, state.heads, sizes[k]);
    in_input.value("heads", inputs[full].heads, state.heads, state.heads);
  }
}

template <auto replay>
specdec_result replayed(const char* function, const specdec_replay_args* given, int32_t threads, int full) {
  return guarded(function, threads, [&](const Check& check) {
    specdec_replay_args args = check.known("args", given);
    specdec_paths paths;
    check.value("state_count", args.state_count, 0, kMostItems);
    take_layers(check, args, paths, "input_count", args.input_count, 4 * args.state_count);
    check_replay(check, args, full);
    replay(args, threads);
  });
}

}  // namespace
}  // namespace specdec

using namespace specdec;

specdec_result specdec_commit_kv(const specdec_commit_args* given, int32_t threads) {
  return guarded("specdec_commit_kv", threads, [&](const Check& check) {
    specdec_commit_args args = check.known("args", given);
    specdec_paths paths;
    take_paths(check, args.paths, paths);
    check.element<specdec_cache>("cache_struct_size", args.cache_struct_size);
    if (args.new_rows) check.element<specdec_new_rows>("new_rows_struct_size", args.new_rows_struct_size);
    check_commit(check, args);
    commit_kv(args, threads);
  });
}

specdec_result specdec_commit_state(const specdec_commit_state_args* given, int32_t threads) {
  return guarded("specdec_commit_state", threads, [&](const Check& check) {
    specdec_commit_state_args args = check.known("args", given);
    specdec_paths paths;
    check.value("state_count", args.state_count, 0, kMostItems);
    take_layers(check, args, paths, "snapshot_count", args.snapshot_count, args.state_count);
    check_states(check, args);
    commit_state(args, threads);
  });
}

specdec_result specdec_replay_conv(const specdec_replay_conv_args* given, int32_t threads) {
  return guarded("specdec_replay_conv", threads, [&](const Check& check) {
    specdec_replay_conv_args args = check.known("args", given);
    specdec_paths paths;
    check.value("window_count", args.window_count, 0, kMostItems);
    take_layers(check, args, paths, "input_count", args.input_count, args.window_count);
    check_windows(check, args);
    replay_conv(args, threads);
  });
}

specdec_result specdec_replay_gated_delta(const specdec_replay_args* given, int32_t threads) {
  return replayed<replay_gated_delta>("specdec_replay_gated_delta", given, threads, 1);
}

specdec_result specdec_replay_mamba2(const specdec_replay_args* given, int32_t threads) {
  return replayed<replay_mamba2>("specdec_replay_mamba2", given, threads, 0);
}
