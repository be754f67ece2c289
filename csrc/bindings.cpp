// SPDX-License-Identifier: Apache-2.0
// Python's view of the core: the functions of specdec.h.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fields.h"
#include "kernels.h"
#include "random.h"
#include "specdec.h"
#include "suffix_index.h"

using namespace specdec;

namespace {

py::object int_enum(const char* name, const std::vector<std::pair<const char*, int>>& members) {
  py::dict values;
  for (const auto& [member, value] : members) values[member] = value;
  return py::module_::import("enum").attr("IntEnum")(name, values);
}

void bind_enums(py::module_& m) {
  m.attr("DType") = int_enum("DType", {{"float32", SPECDEC_FLOAT32},
                                       {"bfloat16", SPECDEC_BFLOAT16},
                                       {"float16", SPECDEC_FLOAT16},
                                       {"int8", SPECDEC_INT8},
                                       {"float8_e4m3fn", SPECDEC_FLOAT8_E4M3FN}});
  m.attr("Rule") = int_enum("Rule", {{"match", SPECDEC_MATCH},
                                     {"token", SPECDEC_TOKEN},
                                     {"traversal", SPECDEC_TRAVERSAL},
                                     {"typical", SPECDEC_TYPICAL},
                                     {"relaxed", SPECDEC_RELAXED},
                                     {"lenient", SPECDEC_LENIENT},
                                     {"synthetic", SPECDEC_SYNTHETIC},
                                     {"deferred", SPECDEC_DEFERRED},
                                     {"threshold", SPECDEC_THRESHOLD},
                                     {"ensemble", SPECDEC_ENSEMBLE}});
  m.attr("DraftForm") = int_enum("DraftForm", {{"logits", SPECDEC_DRAFT_LOGITS},
                                               {"logprobs", SPECDEC_DRAFT_LOGPROBS},
                                               {"probs", SPECDEC_DRAFT_PROBS}});
  m.attr("LawKind") = int_enum("LawKind", {{"processed", SPECDEC_LAW_PROCESSED},
                                           {"raw", SPECDEC_LAW_RAW},
                                           {"temperature", SPECDEC_LAW_TEMPERATURE}});
  m.attr("Method") = int_enum("Method", {{"independent", SPECDEC_CHILDREN_INDEPENDENT},
                                         {"without_replacement", SPECDEC_CHILDREN_WITHOUT_REPLACEMENT},
                                         {"top_k", SPECDEC_CHILDREN_TOP_K},
                                         {"hybrid", SPECDEC_CHILDREN_HYBRID}});
  m.attr("Purpose") = int_enum("Purpose", {{"NEXT", SPECDEC_PURPOSE_NEXT},
                                           {"RESIDUAL", SPECDEC_PURPOSE_RESIDUAL},
                                           {"ACCEPT", SPECDEC_PURPOSE_ACCEPT},
                                           {"DRAFT", SPECDEC_PURPOSE_DRAFT}});
}

void bind_rows(py::module_& m) {
  using R = specdec_rows;
  bind_struct<R>(m, "Rows",
                 {field<R, &R::data>("data"), field<R, &R::dtype>("dtype"), field<R, &R::count>("count"),
                  field<R, &R::size>("size"), field<R, &R::group>("group"),
                  field<R, &R::group_stride>("group_stride"), field<R, &R::row_stride>("row_stride")});
  using S = specdec_sampling;
  bind_struct<S>(
      m, "Sampling",
      {number_or_array<S, &S::temperature, &S::temperatures>("temperature"),
       number_or_array<S, &S::top_k, &S::top_ks>("top_k"), number_or_array<S, &S::top_p, &S::top_ps>("top_p"),
       number_or_array<S, &S::min_p, &S::min_ps>("min_p"), field<S, &S::min_p_last>("min_p_last")});
}

void bind_reports(py::module_& m) {
  using L = specdec_logprobs;
  bind_struct<L>(
      m, "Logprobs",
      {field<L, &L::kind>("kind"), field<L, &L::top>("top"), field<L, &L::chosen>("chosen"),
       field<L, &L::chosen_count>("chosen_count"), field<L, &L::out_top_logprobs>("out_top_logprobs"),
       field<L, &L::out_top_tokens>("out_top_tokens"), field<L, &L::out_ranks>("out_ranks"),
       field<L, &L::out_chosen_logprobs>("out_chosen_logprobs")});
  using M = specdec_masks;
  bind_struct<M>(m, "Masks",
                 {field<M, &M::out_bits>("out_bits"), field<M, &M::out_ids>("out_ids"),
                  field<M, &M::capacity>("capacity"), field<M, &M::out_offsets>("out_offsets"),
                  field<M, &M::out_counts>("out_counts"), field<M, &M::out_mass>("out_mass")});
}

void bind_edits(py::module_& m) {
  using E = specdec_edits;
  bind_struct<E>(m, "Edits",
                 {field<E, &E::count_tokens>("count_tokens"),
                  field<E, &E::count_prompt>("count_prompt"),
                  field<E, &E::count_output>("count_output"),
                  field<E, &E::count_sizes>("count_sizes"),
                  field<E, &E::recent>("recent"),
                  field<E, &E::slots>("slots"),
                  field<E, &E::capacity>("capacity"),
                  field<E, &E::recent_width>("recent_width"),
                  field<E, &E::request_slots>("request_slots"),
                  number_or_array<E, &E::repetition, &E::repetitions>("repetition"),
                  number_or_array<E, &E::frequency, &E::frequencies>("frequency"),
                  number_or_array<E, &E::presence, &E::presences>("presence"),
                  field<E, &E::penalize_prompt>("penalize_prompt"),
                  field<E, &E::bias_tokens>("bias_tokens"),
                  field<E, &E::bias_values>("bias_values"),
                  field<E, &E::bias_count>("bias_count"),
                  field<E, &E::banned_tokens>("banned_tokens"),
                  field<E, &E::banned_count>("banned_count"),
                  field<E, &E::banned_until>("banned_until"),
                  field<E, &E::bad_words>("bad_words"),
                  field<E, &E::bad_word_count>("bad_word_count"),
                  field<E, &E::bad_word_length>("bad_word_length"),
                  field<E, &E::forced_tokens>("forced_tokens"),
                  field<E, &E::forced_count>("forced_count")});
  using L = specdec_edit_logits_args;
  bind_function<specdec_edit_logits, L>(
      m, "edit_logits",
      {field<L, &L::logits>("logits"), field<L, &L::requests>("requests"), field<L, &L::nodes>("nodes"),
       field<L, &L::tokens>("tokens"), field<L, &L::parents>("parents"), field<L, &L::cu_nodes>("cu_nodes"),
       field<L, &L::target_rows>("target_rows"), field<L, &L::edits>("edits")});
  using C = specdec_count_tokens_args;
  bind_function<specdec_count_tokens, C>(
      m, "count_tokens",
      {field<C, &C::requests>("requests"), field<C, &C::width>("width"), field<C, &C::vocab>("vocab"),
       field<C, &C::tokens>("tokens"), field<C, &C::tokens_are_int32>("tokens_are_int32"),
       field<C, &C::num_tokens>("num_tokens"), field<C, &C::request_slots>("request_slots"),
       field<C, &C::slots>("slots"), field<C, &C::capacity>("capacity"),
       field<C, &C::recent_width>("recent_width"), field<C, &C::count_tokens>("count_tokens"),
       field<C, &C::count_prompt>("count_prompt"), field<C, &C::count_output>("count_output"),
       field<C, &C::count_sizes>("count_sizes"), field<C, &C::recent>("recent")});
}

void bind_verify(py::module_& m) {
  using V = specdec_verify_args;
  bind_function<specdec_verify, V>(m, "verify",
                                   {field<V, &V::target>("target"),
                                    field<V, &V::target_rows>("target_rows"),
                                    field<V, &V::rows_end_early>("rows_end_early"),
                                    field<V, &V::requests>("requests"),
                                    field<V, &V::nodes>("nodes"),
                                    field<V, &V::tokens>("tokens"),
                                    field<V, &V::parents>("parents"),
                                    field<V, &V::cu_nodes>("cu_nodes"),
                                    field<V, &V::proposals>("proposals"),
                                    field<V, &V::first_child>("first_child"),
                                    field<V, &V::next_sibling>("next_sibling"),
                                    field<V, &V::draft>("draft"),
                                    field<V, &V::draft_rows>("draft_rows"),
                                    field<V, &V::draft_chain>("draft_chain"),
                                    field<V, &V::draft_ids>("draft_ids"),
                                    field<V, &V::draft_columns>("draft_columns"),
                                    field<V, &V::draft_form>("draft_form"),
                                    field<V, &V::sampling>("sampling"),
                                    field<V, &V::draft_sampling>("draft_sampling"),
                                    field<V, &V::rule>("rule"),
                                    list<V, &V::rule_values, &V::rule_value_count>("rule_values"),
                                    field<V, &V::seeds>("seeds"),
                                    field<V, &V::positions>("positions"),
                                    field<V, &V::bitmask>("bitmask"),
                                    field<V, &V::bitmask_stride>("bitmask_stride"),
                                    field<V, &V::bonus_tokens>("bonus_tokens"),
                                    field<V, &V::bonus_tokens_are_int32>("bonus_tokens_are_int32"),
                                    field<V, &V::edits>("edits"),
                                    field<V, &V::stop_tokens>("stop_tokens"),
                                    field<V, &V::stop_count>("stop_count"),
                                    field<V, &V::new_tokens_left>("new_tokens_left"),
                                    field<V, &V::context_left>("context_left"),
                                    field<V, &V::finished>("finished"),
                                    field<V, &V::width>("width"),
                                    field<V, &V::out_tokens>("out_tokens"),
                                    field<V, &V::out_tokens_are_int32>("out_tokens_are_int32"),
                                    field<V, &V::out_num_tokens>("out_num_tokens"),
                                    field<V, &V::out_num_accepted>("out_num_accepted"),
                                    field<V, &V::out_path>("out_path"),
                                    field<V, &V::out_logprobs>("out_logprobs"),
                                    field<V, &V::out_status>("out_status"),
                                    field<V, &V::out_finish>("out_finish"),
                                    field<V, &V::logprobs>("logprobs"),
                                    field<V, &V::masks>("masks"),
                                    field<V, &V::trace_thresholds>("trace_thresholds"),
                                    field<V, &V::trace_masses>("trace_masses")});
  using S = specdec_sample_args;
  bind_function<specdec_sample, S>(
      m, "sample",
      {field<S, &S::logits>("logits"), field<S, &S::sampling>("sampling"), field<S, &S::seeds>("seeds"),
       field<S, &S::positions>("positions"), field<S, &S::bitmask>("bitmask"),
       field<S, &S::bitmask_stride>("bitmask_stride"), field<S, &S::edits>("edits"),
       field<S, &S::out_tokens>("out_tokens"), field<S, &S::out_logprobs>("out_logprobs"),
       field<S, &S::logprobs>("logprobs")});
}

void bind_drafting(py::module_& m) {
  using C = specdec_children_args;
  bind_function<specdec_sample_children, C>(
      m, "sample_children",
      {field<C, &C::logits>("logits"), field<C, &C::k>("k"), field<C, &C::method>("method"),
       field<C, &C::purpose>("purpose"), field<C, &C::sampling>("sampling"), field<C, &C::seeds>("seeds"),
       field<C, &C::positions>("positions"), field<C, &C::nodes>("nodes"),
       field<C, &C::out_tokens>("out_tokens"), field<C, &C::out_scores>("out_scores")});
  using N = specdec_ngram_search;
  bind_struct<N>(
      m, "NgramSearch",
      {field<N, &N::tokens>("tokens"), field<N, &N::lengths>("lengths"), field<N, &N::requests>("requests"),
       field<N, &N::width>("width"), field<N, &N::min_ngram>("min_ngram"),
       field<N, &N::max_ngram>("max_ngram"), field<N, &N::cyclic>("cyclic")});
  using D = specdec_ngram_draft_args;
  bind_function<specdec_ngram_draft, D>(m, "ngram_draft",
                                        {field<D, &D::search>("search"), field<D, &D::frequent>("frequent"),
                                         field<D, &D::num_draft>("num_draft"), field<D, &D::out>("out")});
  using T = specdec_ngram_tree_args;
  bind_function<specdec_ngram_tree, T>(
      m, "ngram_tree",
      {field<T, &T::search>("search"), field<T, &T::max_depth>("max_depth"),
       field<T, &T::branches>("branches"), field<T, &T::max_nodes>("max_nodes"),
       list<T, &T::trust, &T::trust_count>("trust"), field<T, &T::out_tokens>("out_tokens"),
       field<T, &T::out_parents>("out_parents"), field<T, &T::out_scores>("out_scores")});
}

void bind_budget(py::module_& m) {
  using B = specdec_budget;
  bind_struct<B>(
      m, "Budget",
      {field<B, &B::costs>("costs"), field<B, &B::max_rows>("max_rows"), field<B, &B::credit>("credit"),
       field<B, &B::idle_steps>("idle_steps"), field<B, &B::promised>("promised"), field<B, &B::kept>("kept"),
       field<B, &B::slots>("slots")});
  using S = specdec_select_nodes_args;
  bind_function<specdec_select_nodes, S>(m, "select_nodes",
                                         {field<S, &S::budget>("budget"),
                                          field<S, &S::prior>("prior"),
                                          field<S, &S::patience>("patience"),
                                          field<S, &S::requests>("requests"),
                                          field<S, &S::nodes>("nodes"),
                                          field<S, &S::tokens>("tokens"),
                                          field<S, &S::parents>("parents"),
                                          field<S, &S::cu_nodes>("cu_nodes"),
                                          field<S, &S::proposals>("proposals"),
                                          field<S, &S::scores>("scores"),
                                          field<S, &S::draft_rows>("draft_rows"),
                                          field<S, &S::request_slots>("request_slots"),
                                          field<S, &S::out_tokens>("out_tokens"),
                                          field<S, &S::out_parents>("out_parents"),
                                          field<S, &S::out_cu_nodes>("out_cu_nodes"),
                                          field<S, &S::out_proposals>("out_proposals"),
                                          field<S, &S::out_scores>("out_scores"),
                                          field<S, &S::out_rows>("out_rows"),
                                          field<S, &S::out_draft_rows>("out_draft_rows"),
                                          field<S, &S::weights>("weights")});
  using U = specdec_update_budget_args;
  bind_function<specdec_update_budget, U>(
      m, "update_budget",
      {field<U, &U::budget>("budget"), field<U, &U::decay>("decay"), field<U, &U::allowance>("allowance"),
       field<U, &U::max_credit>("max_credit"), field<U, &U::requests>("requests"),
       field<U, &U::nodes>("nodes"), field<U, &U::parents>("parents"), field<U, &U::cu_nodes>("cu_nodes"),
       field<U, &U::proposals>("proposals"), field<U, &U::scores>("scores"), field<U, &U::path>("path"),
       field<U, &U::width>("width"), field<U, &U::num_tokens>("num_tokens"),
       field<U, &U::request_slots>("request_slots")});
}

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Chains of drafted tokens [batch, depth]: tokens with roots of -1, parents, offsets and proposals.
py::tuple uniform_chains(std::uintptr_t drafts, bool are_int32, int64_t batch, int64_t depth, uint8_t kind) {
  const int64_t nodes = depth + 1;
  py::array_t<int64_t> tokens(batch * nodes);
  py::array_t<int32_t> parents(batch * nodes), cu_nodes(batch + 1);
  py::array_t<uint8_t> proposals(batch * nodes);
  int64_t* const out = tokens.mutable_data();
  int32_t* const up = parents.mutable_data();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t v = 0; v < nodes; ++v) {
      const int64_t place = b * depth + v - 1;
      out[b * nodes + v] = v == 0 ? -1 : are_int32 ? at<int32_t>(drafts)[place] : at<int64_t>(drafts)[place];
      up[b * nodes + v] = static_cast<int32_t>(v - 1);
    }
  }
  for (int64_t b = 0; b <= batch; ++b) cu_nodes.mutable_data()[b] = static_cast<int32_t>(b * nodes);
  std::fill_n(proposals.mutable_data(), batch * nodes, kind);
  return py::make_tuple(tokens, parents, cu_nodes, proposals);
}

void bind_trees(py::module_& m) {
  using C = specdec_enter_chains_args;
  bind_function<specdec_enter_chains, C>(
      m, "enter_chains",
      {field<C, &C::drafts>("drafts"), field<C, &C::drafts_are_int32>("drafts_are_int32"),
       field<C, &C::draft_count>("draft_count"), field<C, &C::cu_drafts>("cu_drafts"),
       field<C, &C::cu_drafts_are_int32>("cu_drafts_are_int32"), field<C, &C::requests>("requests"),
       field<C, &C::out_tokens>("out_tokens"), field<C, &C::out_parents>("out_parents"),
       field<C, &C::out_cu_nodes>("out_cu_nodes")});
  m.def("uniform_chains", &uniform_chains, py::arg("drafts"), py::arg("are_int32"), py::arg("batch"),
        py::arg("depth"), py::arg("kind"));
  using L = specdec_enter_links_args;
  bind_function<specdec_enter_links, L>(
      m, "enter_links",
      {field<L, &L::tokens>("tokens"), field<L, &L::tokens_are_int32>("tokens_are_int32"),
       field<L, &L::columns>("columns"), field<L, &L::next_token>("next_token"),
       field<L, &L::next_sibling>("next_sibling"), field<L, &L::links_are_int32>("links_are_int32"),
       field<L, &L::requests>("requests"), field<L, &L::nodes>("nodes"),
       field<L, &L::out_tokens>("out_tokens"), field<L, &L::out_parents>("out_parents"),
       field<L, &L::out_first_child>("out_first_child"), field<L, &L::out_next_sibling>("out_next_sibling")});
}

void bind_attention(py::module_& m) {
  using R = specdec_head_rows;
  bind_struct<R>(m, "HeadRows",
                 {field<R, &R::data>("data"), field<R, &R::dtype>("dtype"),
                  field<R, &R::row_stride>("row_stride"), field<R, &R::head_stride>("head_stride")});
  using C = specdec_head_cache;
  bind_struct<C>(
      m, "HeadCache",
      {field<C, &C::data>("data"), field<C, &C::dtype>("dtype"), field<C, &C::page_stride>("page_stride"),
       field<C, &C::slot_stride>("slot_stride"), field<C, &C::head_stride>("head_stride"),
       field<C, &C::scales>("scales"), field<C, &C::scale>("scale")});
  using A = specdec_attention_args;
  bind_function<specdec_tree_attention, A>(m, "tree_attention",
                                           {field<A, &A::query>("query"),
                                            field<A, &A::new_key>("new_key"),
                                            field<A, &A::new_value>("new_value"),
                                            field<A, &A::key>("key"),
                                            field<A, &A::value>("value"),
                                            field<A, &A::nodes>("nodes"),
                                            field<A, &A::query_heads>("query_heads"),
                                            field<A, &A::heads>("heads"),
                                            field<A, &A::head>("head"),
                                            field<A, &A::value_size>("value_size"),
                                            field<A, &A::parents>("parents"),
                                            field<A, &A::cu_nodes>("cu_nodes"),
                                            field<A, &A::requests>("requests"),
                                            field<A, &A::block_table>("block_table"),
                                            field<A, &A::table_width>("table_width"),
                                            field<A, &A::pages>("pages"),
                                            field<A, &A::page_size>("page_size"),
                                            field<A, &A::prefix_lens>("prefix_lens"),
                                            field<A, &A::max_prefix>("max_prefix"),
                                            field<A, &A::scale>("scale"),
                                            field<A, &A::softcap>("softcap"),
                                            field<A, &A::window>("window"),
                                            field<A, &A::sinks>("sinks"),
                                            field<A, &A::deterministic>("deterministic"),
                                            field<A, &A::out>("out"),
                                            field<A, &A::out_lse>("out_lse")});
}

void bind_commit(py::module_& m) {
  using P = specdec_paths;
  bind_struct<P>(
      m, "Paths",
      {field<P, &P::nodes>("nodes"), field<P, &P::width>("width"), field<P, &P::cu_nodes>("cu_nodes"),
       field<P, &P::rows>("rows"), field<P, &P::requests>("requests")});
  using C = specdec_commit_args;
  bind_function<specdec_commit_kv, C>(
      m, "commit_kv",
      {field<C, &C::caches>("caches"), field<C, &C::new_rows>("new_rows"),
       field<C, &C::cache_count>("cache_count"), field<C, &C::cache_struct_size>("cache_struct_size"),
       field<C, &C::new_rows_struct_size>("new_rows_struct_size"), field<C, &C::paths>("paths"),
       field<C, &C::block_table>("block_table"), field<C, &C::table_width>("table_width"),
       field<C, &C::prefix_lens>("prefix_lens"), field<C, &C::page_size>("page_size"),
       field<C, &C::out_lengths>("out_lengths"), field<C, &C::out_pages_kept>("out_pages_kept")});
}

void bind_states(py::module_& m) {
  using R = specdec_states;
  bind_struct<R>(m, "States",
                 {field<R, &R::data>("data"), field<R, &R::slots>("slots"),
                  field<R, &R::slot_stride>("slot_stride"), field<R, &R::row_bytes>("row_bytes")});
  using S = specdec_snapshots;
  bind_struct<S>(m, "Snapshots", {field<S, &S::data>("data"), field<S, &S::row_stride>("row_stride")});
  using C = specdec_commit_state_args;
  bind_function<specdec_commit_state, C>(
      m, "commit_state",
      {field<C, &C::paths>("paths"), field<C, &C::slots>("slots"),
       structs<C, &C::states, &C::state_count, &C::state_struct_size>("states"),
       structs<C, &C::snapshots, &C::snapshot_count, &C::snapshot_struct_size>("snapshots")});
  using W = specdec_windows;
  bind_struct<W>(m, "Windows",
                 {field<W, &W::data>("data"), field<W, &W::slots>("slots"),
                  field<W, &W::channels>("channels"), field<W, &W::taps>("taps"),
                  field<W, &W::slot_stride>("slot_stride"), field<W, &W::channel_stride>("channel_stride"),
                  field<W, &W::tap_stride>("tap_stride"), field<W, &W::item_bytes>("item_bytes")});
  using I = specdec_window_inputs;
  bind_struct<I>(m, "WindowInputs",
                 {field<I, &I::data>("data"), field<I, &I::row_stride>("row_stride"),
                  field<I, &I::channel_stride>("channel_stride")});
  using V = specdec_replay_conv_args;
  bind_function<specdec_replay_conv, V>(
      m, "replay_conv",
      {field<V, &V::paths>("paths"), field<V, &V::slots>("slots"),
       structs<V, &V::windows, &V::window_count, &V::window_struct_size>("windows"),
       structs<V, &V::inputs, &V::input_count, &V::input_struct_size>("inputs")});
  using M = specdec_matrices;
  bind_struct<M>(m, "Matrices",
                 {field<M, &M::data>("data"), field<M, &M::dtype>("dtype"), field<M, &M::slots>("slots"),
                  field<M, &M::heads>("heads"), field<M, &M::rows>("rows"), field<M, &M::columns>("columns"),
                  field<M, &M::slot_stride>("slot_stride"), field<M, &M::head_stride>("head_stride"),
                  field<M, &M::row_stride>("row_stride"), field<M, &M::column_stride>("column_stride")});
  using N = specdec_node_inputs;
  bind_struct<N>(m, "NodeInputs",
                 {field<N, &N::data>("data"), field<N, &N::dtype>("dtype"), field<N, &N::heads>("heads"),
                  field<N, &N::size>("size"), field<N, &N::row_stride>("row_stride"),
                  field<N, &N::head_stride>("head_stride")});
  using P = specdec_replay_args;
  bind_function<specdec_replay_gated_delta, P>(
      m, "replay_gated_delta",
      {field<P, &P::paths>("paths"), field<P, &P::slots>("slots"),
       structs<P, &P::states, &P::state_count, &P::state_struct_size>("states"),
       structs<P, &P::inputs, &P::input_count, &P::input_struct_size>("inputs")});
  bind_function<specdec_replay_mamba2, P>(
      m, "replay_mamba2",
      {field<P, &P::paths>("paths"), field<P, &P::slots>("slots"),
       structs<P, &P::states, &P::state_count, &P::state_struct_size>("states"),
       structs<P, &P::inputs, &P::input_count, &P::input_struct_size>("inputs")});
}

// A class of its own: it is a state that lives on, which no function of the C interface has.
void bind_suffix_index(py::module_& m) {
  using I = SuffixIndex;
  using Free = py::call_guard<py::gil_scoped_release>;
  py::class_<I>(m, "SuffixIndex")
      .def(py::init<int64_t>(), py::arg("max_bytes"))
      .def("add", &I::add, Free(), py::arg("request"), py::arg("name"), py::arg("reads"))
      .def(
          "extend",
          [](I& index, std::uintptr_t requests, int64_t count, std::uintptr_t tokens, int64_t width,
             std::uintptr_t sizes) {
            index.extend(at<int64_t>(requests), count, at<int64_t>(tokens), width, at<int64_t>(sizes));
          },
          Free(), py::arg("requests"), py::arg("count"), py::arg("tokens"), py::arg("width"),
          py::arg("sizes"))
      .def("finish", &I::finish, Free(), py::arg("request"))
      .def("remove", &I::remove, Free(), py::arg("request"))
      .def(
          "load",
          [](I& index, const std::string& name, std::uintptr_t tokens, int32_t dtype, int64_t size) {
            return index.load(name, at<void>(tokens), static_cast<TokenDType>(dtype), size);
          },
          Free(), py::arg("name"), py::arg("tokens"), py::arg("dtype"), py::arg("size"))
      .def("unload", &I::unload, Free(), py::arg("corpus"))
      .def(
          "draft",
          [](const I& index, int threads, const std::vector<int64_t>& requests, int64_t max_nodes,
             int64_t max_depth, int64_t candidates, int64_t min_match, const std::vector<double>& trust) {
            const auto count = static_cast<int64_t>(requests.size());
            py::array_t<float> scores({count, max_nodes});  // NumPy refuses sizes that are too large
            py::array_t<int64_t> tokens(scores.size());
            py::array_t<int32_t> parents(scores.size()), cu_nodes(count + 1);
            py::array_t<uint8_t> proposals(scores.size());
            const SuffixDraft args{max_nodes,
                                   max_depth,
                                   candidates,
                                   min_match,
                                   trust.data(),
                                   static_cast<int64_t>(trust.size()),
                                   tokens.mutable_data(),
                                   parents.mutable_data(),
                                   cu_nodes.mutable_data(),
                                   proposals.mutable_data(),
                                   scores.mutable_data()};
            {
              const py::gil_scoped_release free;
              index.draft(requests.data(), count, args, threads);
            }
            return py::make_tuple(tokens, parents, cu_nodes, proposals, scores);
          },
          py::arg("threads"), py::arg("requests"), py::arg("max_nodes"), py::arg("max_depth"),
          py::arg("candidates"), py::arg("min_match"), py::arg("trust"))
      .def("size", &I::size, Free())
      .def("contains", &I::contains, Free(), py::arg("request"))
      .def("list",
           [](const I& index) {
             py::list listed;
             for (const I::Listed& text : index.list())
               listed.append(py::make_tuple(text.request, text.name, text.size, text.running));
             return listed;
           })
      .def(
          "read",
          [](const I& index, int64_t request, std::uintptr_t out) { index.read(request, at<int32_t>(out)); },
          Free(), py::arg("request"), py::arg("out"))
      .def("bytes", &I::bytes, Free());
}

const Kernels& kernels_named(const std::string& isa) {
  const Kernels* table = isa == "avx512" ? avx512_kernels()
                         : isa == "avx2" ? avx2_kernels()
                         : isa == "neon" ? neon_kernels()
                                         : baseline_kernels();
  if (!table) throw py::value_error("instruction set '" + isa + "' is not available on this processor");
  return *table;
}

// For tests of the kernels themselves.
void bind_kernels(py::module_& m) {
  m.def(
      "exp2",
      [](const std::string& isa, std::uintptr_t x, std::uintptr_t out, int64_t n) {
        kernels_named(isa).exp2(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(out), n);
      },
      py::arg("isa"), py::arg("x"), py::arg("out"), py::arg("n"));
  m.def("exponential", [](uint32_t word) { return exponential(word); }, py::arg("word"));
  m.def(
      "race",
      [](const std::string& isa, std::uintptr_t x, int64_t n, float max, int64_t seed, int64_t position,
         uint32_t purpose) {
        Leader leader;
        const double sum =
            kernels_named(isa).race(reinterpret_cast<const float*>(x), n, Weight{.max = max},
                                    Stream(seed, position, static_cast<Purpose>(purpose)), 0, leader);
        return std::make_tuple(sum, leader.score, leader.token);
      },
      py::arg("isa"), py::arg("x"), py::arg("n"), py::arg("max"), py::arg("seed"), py::arg("position"),
      py::arg("purpose"));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  bind_enums(m);
  bind_rows(m);
  bind_reports(m);
  bind_edits(m);
  bind_verify(m);
  bind_drafting(m);
  bind_budget(m);
  bind_trees(m);
  bind_attention(m);
  bind_commit(m);
  bind_states(m);
  bind_suffix_index(m);
  bind_kernels(m);
  m.def("instruction_set", &specdec_instruction_set);
}
