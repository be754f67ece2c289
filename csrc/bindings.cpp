// SPDX-License-Identifier: Apache-2.0
// Python's view of the core: addresses, sizes and strides come in as numbers, and the interpreter lock is
// released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "attention.h"
#include "children.h"
#include "commit.h"
#include "kernels.h"
#include "ngram.h"
#include "random.h"
#include "state.h"
#include "verify.h"

namespace py = pybind11;
using namespace specdec;

namespace {

using Address = std::uintptr_t;
using RowsTuple = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t, int64_t>;
using SamplingTuple = std::tuple<std::array<double, 5>, std::array<Address, 4>>;
using BitmaskTuple = std::tuple<Address, int64_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Rows rows_of(const RowsTuple& t) {
  const auto& [data, dtype, count, size, group, group_stride, row_stride] = t;
  return {pointer<const void>(data), static_cast<DType>(dtype), count, size, group, group_stride, row_stride};
}

SamplingArgs sampling_of(const SamplingTuple& t) {
  const auto& [numbers, arrays] = t;
  const auto value = [&](int i) { return PerRequest{pointer<const double>(arrays[i]), numbers[i]}; };
  return {value(0), value(1), value(2), value(3), numbers[4] != 0};
}

Bitmask bitmask_of(const BitmaskTuple& t) {
  return {pointer<const uint32_t>(std::get<0>(t)), std::get<1>(t)};
}

void verify_binding(const RowsTuple& target, const std::array<Address, 6>& tree, int64_t requests,
                    const RowsTuple& draft, Address draft_rows, int64_t draft_chain, Address draft_ids,
                    Address draft_columns, bool draft_is_logprobs, const SamplingTuple& sampling,
                    const SamplingTuple& draft_sampling, int rule, const std::vector<double>& rule_values,
                    Address seeds, Address positions, const BitmaskTuple& bitmask, int64_t width,
                    const std::array<Address, 6>& out, const std::array<Address, 2>& trace, int threads) {
  VerifyArgs a;
  a.target = rows_of(target);
  a.tokens = pointer<const int64_t>(tree[0]);
  a.parents = pointer<const int32_t>(tree[1]);
  a.cu_nodes = pointer<const int32_t>(tree[2]);
  a.proposals = pointer<const uint8_t>(tree[3]);
  a.first_child = pointer<const int32_t>(tree[4]);
  a.next_sibling = pointer<const int32_t>(tree[5]);
  a.requests = requests;
  a.draft = rows_of(draft);
  a.draft_rows = pointer<const int32_t>(draft_rows);
  a.draft_chain = draft_chain;
  a.draft_ids = pointer<const int64_t>(draft_ids);
  a.draft_columns = pointer<const int32_t>(draft_columns);
  a.draft_is_logprobs = draft_is_logprobs;
  a.sampling = sampling_of(sampling);
  a.draft_sampling = sampling_of(draft_sampling);
  a.rule = static_cast<Rule>(rule);
  a.rule_values = rule_values.data();
  a.rule_count = static_cast<int64_t>(rule_values.size());
  a.seeds = pointer<const int64_t>(seeds);
  a.positions = pointer<const int64_t>(positions);
  a.bitmask = bitmask_of(bitmask);
  a.width = width;
  a.out_tokens = pointer<int64_t>(out[0]);
  a.out_num_tokens = pointer<int32_t>(out[1]);
  a.out_num_accepted = pointer<int32_t>(out[2]);
  a.out_path = pointer<int32_t>(out[3]);
  a.out_logprobs = pointer<float>(out[4]);
  a.out_status = pointer<int32_t>(out[5]);
  a.trace_thresholds = pointer<double>(trace[0]);
  a.trace_masses = pointer<double>(trace[1]);
  py::gil_scoped_release release;
  verify(a, threads);
}

void sample_binding(const RowsTuple& logits, const SamplingTuple& sampling, Address seeds, Address positions,
                    const BitmaskTuple& bitmask, Address out_tokens, Address out_logprobs, int threads) {
  SampleArgs a;
  a.logits = rows_of(logits);
  a.sampling = sampling_of(sampling);
  a.seeds = pointer<const int64_t>(seeds);
  a.positions = pointer<const int64_t>(positions);
  a.bitmask = bitmask_of(bitmask);
  a.out_tokens = pointer<int64_t>(out_tokens);
  a.out_logprobs = pointer<float>(out_logprobs);
  py::gil_scoped_release release;
  sample(a, threads);
}

// `keys`: seeds, positions, nodes. `out`: tokens, scores.
void sample_children_binding(const RowsTuple& logits, int64_t k, int method, const SamplingTuple& sampling,
                             const std::array<Address, 3>& keys, int purpose,
                             const std::array<Address, 2>& out, int threads) {
  ChildrenArgs a;
  a.logits = rows_of(logits);
  a.k = k;
  a.method = static_cast<Method>(method);
  a.sampling = sampling_of(sampling);
  a.seeds = pointer<const int64_t>(keys[0]);
  a.positions = pointer<const int64_t>(keys[1]);
  a.nodes = pointer<const int64_t>(keys[2]);
  a.purpose = static_cast<Purpose>(purpose);
  a.out_tokens = pointer<int64_t>(out[0]);
  a.out_scores = pointer<float>(out[1]);
  py::gil_scoped_release release;
  sample_children(a, threads);
}

// `text`: tokens, lengths. `sizes`: B, L, min_ngram, max_ngram.
void set_texts(NgramArgs& a, const std::array<Address, 2>& text, const std::array<int64_t, 4>& sizes,
               bool cyclic) {
  a.tokens = pointer<const int64_t>(text[0]);
  a.lengths = pointer<const int64_t>(text[1]);
  a.requests = sizes[0];
  a.width = sizes[1];
  a.min_ngram = sizes[2];
  a.max_ngram = sizes[3];
  a.cyclic = cyclic;
}

void ngram_draft_binding(const std::array<Address, 2>& text, const std::array<int64_t, 4>& sizes, bool cyclic,
                         bool frequent, int64_t num_draft, Address out, int threads) {
  NgramDraftArgs a;
  set_texts(a, text, sizes, cyclic);
  a.frequent = frequent;
  a.num_draft = num_draft;
  a.out = pointer<int64_t>(out);
  py::gil_scoped_release release;
  ngram_draft(a, threads);
}

// `limits`: max_depth, branches, max_nodes. `out`: tokens, parents, scores.
void ngram_tree_binding(const std::array<Address, 2>& text, const std::array<int64_t, 4>& sizes, bool cyclic,
                        const std::array<int64_t, 3>& limits, const std::vector<double>& trust,
                        const std::array<Address, 3>& out, int threads) {
  NgramTreeArgs a;
  set_texts(a, text, sizes, cyclic);
  a.max_depth = limits[0];
  a.branches = limits[1];
  a.max_nodes = limits[2];
  a.trust = trust.data();
  a.trust_count = static_cast<int64_t>(trust.size());
  a.out_tokens = pointer<int64_t>(out[0]);
  a.out_parents = pointer<int32_t>(out[1]);
  a.out_scores = pointer<float>(out[2]);
  py::gil_scoped_release release;
  ngram_tree(a, threads);
}

using PathsTuple = std::tuple<Address, int64_t, Address, int64_t, int64_t>;

Paths paths_of(const PathsTuple& t) {
  const auto& [nodes, width, cu_nodes, rows, requests] = t;
  return {pointer<const int32_t>(nodes), width, pointer<const int32_t>(cu_nodes), rows, requests};
}

void commit_kv_binding(Address caches, Address fresh, int64_t cache_count, const PathsTuple& paths,
                       Address block_table, int64_t pages_per_request, Address prefix_lens, int64_t page_size,
                       Address out_lengths, Address out_pages_kept, int threads) {
  CommitArgs a;
  a.caches = pointer<const Cache>(caches);
  a.fresh = pointer<const NewRows>(fresh);
  a.cache_count = cache_count;
  a.paths = paths_of(paths);
  a.block_table = pointer<const int32_t>(block_table);
  a.pages_per_request = pages_per_request;
  a.prefix_lens = pointer<const int32_t>(prefix_lens);
  a.page_size = page_size;
  a.out_lengths = pointer<int32_t>(out_lengths);
  a.out_pages_kept = pointer<int32_t>(out_pages_kept);
  py::gil_scoped_release release;
  commit_kv(a, threads);
}

using CommitsTuple = std::tuple<PathsTuple, Address>;
using Fields = std::vector<std::vector<int64_t>>;

Commits commits_of(const CommitsTuple& t) {
  return {paths_of(std::get<0>(t)), pointer<const int64_t>(std::get<1>(t))};
}

// Structs of 64-bit fields only.
template <class T>
std::vector<T> structs_of(const Fields& rows) {
  std::vector<T> out(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].size() * sizeof(int64_t) != sizeof(T)) throw py::value_error("wrong number of fields");
    std::memcpy(&out[i], rows[i].data(), sizeof(T));
  }
  return out;
}

template <class State, class Input>
auto state_binding(void (*run)(const Commits&, const std::vector<State>&, const std::vector<Input>&, int)) {
  return [run](const CommitsTuple& commits, const Fields& states, const Fields& inputs, int threads) {
    const auto state_table = structs_of<State>(states);
    const auto input_table = structs_of<Input>(inputs);
    py::gil_scoped_release release;
    run(commits_of(commits), state_table, input_table, threads);
  };
}

using Replay = void (*)(const Commits&, const std::vector<Matrices>&,
                        const std::vector<std::vector<NodeInputs>>&, int);

auto replay_binding(Replay run) {
  return [run](const CommitsTuple& commits, const Fields& states, const std::vector<Fields>& inputs,
               int threads) {
    const auto state_table = structs_of<Matrices>(states);
    std::vector<std::vector<NodeInputs>> input_table;
    for (const Fields& layer : inputs) input_table.push_back(structs_of<NodeInputs>(layer));
    py::gil_scoped_release release;
    run(commits_of(commits), state_table, input_table, threads);
  };
}

using HeadRowsTuple = std::tuple<Address, int, int64_t, int64_t>;
using CacheTuple = std::tuple<Address, int, int64_t, int64_t, int64_t, float, Address>;

HeadRows head_rows_of(const HeadRowsTuple& t) {
  const auto& [data, dtype, row_stride, head_stride] = t;
  return {pointer<const void>(data), static_cast<DType>(dtype), row_stride, head_stride};
}

HeadCache cache_of(const CacheTuple& t) {
  const auto& [data, dtype, page_stride, slot_stride, head_stride, scale, scales] = t;
  return {pointer<const void>(data),
          static_cast<DType>(dtype),
          page_stride,
          slot_stride,
          head_stride,
          pointer<const float>(scales),
          scale};
}

// `rows`: query, new keys, new values. `sizes`: R, query heads, cache heads, D, elements of a value, B.
// `paging`: entries of a row of the block table, pages, page size, bound on prefixes.
void attention_binding(const std::array<HeadRowsTuple, 3>& rows, const std::array<CacheTuple, 2>& caches,
                       const std::array<int64_t, 6>& sizes, const std::array<Address, 2>& tree,
                       const std::array<Address, 2>& tables, const std::array<int64_t, 4>& paging,
                       float scale, int64_t window, float softcap, Address sinks, bool deterministic,
                       const std::array<Address, 2>& out, int threads) {
  AttentionArgs a;
  a.query = head_rows_of(rows[0]);
  a.new_key = head_rows_of(rows[1]);
  a.new_value = head_rows_of(rows[2]);
  a.key = cache_of(caches[0]);
  a.value = cache_of(caches[1]);
  a.rows = sizes[0];
  a.query_heads = sizes[1];
  a.heads = sizes[2];
  a.head = sizes[3];
  a.value_size = sizes[4];
  a.requests = sizes[5];
  a.parents = pointer<const int32_t>(tree[0]);
  a.cu_nodes = pointer<const int32_t>(tree[1]);
  a.block_table = pointer<const int32_t>(tables[0]);
  a.prefix_lens = pointer<const int32_t>(tables[1]);
  a.table_width = paging[0];
  a.pages = paging[1];
  a.page_size = paging[2];
  a.max_prefix = paging[3];
  a.scale = scale;
  a.window = window;
  a.softcap = softcap;
  a.sinks = pointer<const float>(sinks);
  a.deterministic = deterministic;
  a.out = pointer<void>(out[0]);
  a.out_lse = pointer<float>(out[1]);
  py::gil_scoped_release release;
  tree_attention(a, threads);
}

const Kernels& kernels_named(const std::string& isa) {
  const Kernels* table = isa == "avx512" ? avx512_kernels()
                         : isa == "avx2" ? avx2_kernels()
                                         : baseline_kernels();
  if (!table) throw py::value_error("instruction set '" + isa + "' is not available on this processor");
  return *table;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("verify", &verify_binding);
  m.def("sample", &sample_binding);
  m.def("sample_children", &sample_children_binding);
  m.def("ngram_draft", &ngram_draft_binding);
  m.def("ngram_tree", &ngram_tree_binding);
  m.def("commit_kv", &commit_kv_binding);
  m.def("commit_state", state_binding(&commit_state));
  m.def("replay_conv", state_binding(&replay_conv));
  m.def("replay_gated_delta", replay_binding(&replay_gated_delta));
  m.def("replay_mamba2", replay_binding(&replay_mamba2));
  m.def("tree_attention", &attention_binding);
  m.def("instruction_set", [] { return kernels().name; });
  // For tests of the kernels themselves.
  m.def("exp2", [](const std::string& isa, Address x, Address out, int64_t n) {
    kernels_named(isa).exp2(pointer<const float>(x), pointer<float>(out), n);
  });
  m.def("exponential", [](uint32_t word) { return exponential(word); });
  m.def("race", [](const std::string& isa, Address x, int64_t n, float max, int64_t seed, int64_t position,
                   int purpose) {
    Leader leader;
    const double sum =
        kernels_named(isa).race(pointer<const float>(x), n, Weight{.max = max},
                                Stream(seed, position, static_cast<Purpose>(purpose)), 0, leader);
    return std::make_tuple(sum, leader.score, leader.token);
  });
}
