// SPDX-License-Identifier: Apache-2.0
// Python's view of the core: structs of addresses, sizes and strides come in by name, and the interpreter
// lock is released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "attention.h"
#include "children.h"
#include "commit.h"
#include "fields.h"
#include "kernels.h"
#include "ngram.h"
#include "random.h"
#include "state.h"
#include "verify.h"

using namespace specdec;

namespace {

void bind_enums(py::module_& m) {
  py::enum_<DType>(m, "DType")
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16)
      .value("int8", DType::kInt8)
      .value("float8_e4m3fn", DType::kFloat8);
  py::enum_<Rule>(m, "Rule")
      .value("match", Rule::kMatch)
      .value("token", Rule::kToken)
      .value("traversal", Rule::kTraversal)
      .value("typical", Rule::kTypical)
      .value("relaxed", Rule::kRelaxed)
      .value("lenient", Rule::kLenient)
      .value("synthetic", Rule::kSynthetic);
  py::enum_<Method>(m, "Method")
      .value("independent", Method::kIndependent)
      .value("without_replacement", Method::kWithoutReplacement)
      .value("top_k", Method::kTopK)
      .value("hybrid", Method::kHybrid);
  py::enum_<Purpose>(m, "Purpose")
      .value("NEXT", Purpose::kNext)
      .value("RESIDUAL", Purpose::kResidual)
      .value("ACCEPT", Purpose::kAccept)
      .value("DRAFT", Purpose::kDraft);
}

void bind_rows(py::module_& m) {
  bind_struct<Rows>(m, "Rows", field<Rows>("data", &Rows::data), field<Rows>("dtype", &Rows::dtype),
                    field<Rows>("count", &Rows::count), field<Rows>("size", &Rows::size),
                    field<Rows>("group", &Rows::group), field<Rows>("group_stride", &Rows::group_stride),
                    field<Rows>("row_stride", &Rows::row_stride));
  using S = SamplingArgs;
  bind_struct<S>(m, "SamplingArgs", field<S>("temperature", &S::temperature), field<S>("top_k", &S::top_k),
                 field<S>("top_p", &S::top_p), field<S>("min_p", &S::min_p),
                 field<S>("min_p_last", &S::min_p_last));
  bind_struct<Bitmask>(m, "Bitmask", field<Bitmask>("words", &Bitmask::words),
                       field<Bitmask>("stride", &Bitmask::stride));
}

void bind_verify(py::module_& m) {
  using V = VerifyArgs;
  bind_struct<V>(
      m, "VerifyArgs", field<V>("target", &V::target), field<V>("tokens", &V::tokens),
      field<V>("parents", &V::parents), field<V>("cu_nodes", &V::cu_nodes),
      field<V>("proposals", &V::proposals), field<V>("first_child", &V::first_child),
      field<V>("next_sibling", &V::next_sibling), field<V>("requests", &V::requests),
      field<V>("draft", &V::draft), field<V>("draft_rows", &V::draft_rows),
      field<V>("draft_chain", &V::draft_chain), field<V>("draft_ids", &V::draft_ids),
      field<V>("draft_columns", &V::draft_columns), field<V>("draft_is_logprobs", &V::draft_is_logprobs),
      field<V>("sampling", &V::sampling), field<V>("draft_sampling", &V::draft_sampling),
      field<V>("rule", &V::rule), field<V>("rule_values", &V::rule_values), field<V>("seeds", &V::seeds),
      field<V>("positions", &V::positions), field<V>("bitmask", &V::bitmask), field<V>("width", &V::width),
      field<V>("out_tokens", &V::out_tokens), field<V>("out_num_tokens", &V::out_num_tokens),
      field<V>("out_num_accepted", &V::out_num_accepted), field<V>("out_path", &V::out_path),
      field<V>("out_logprobs", &V::out_logprobs), field<V>("out_status", &V::out_status),
      field<V>("trace_thresholds", &V::trace_thresholds), field<V>("trace_masses", &V::trace_masses));
  using S = SampleArgs;
  bind_struct<S>(m, "SampleArgs", field<S>("logits", &S::logits), field<S>("sampling", &S::sampling),
                 field<S>("seeds", &S::seeds), field<S>("positions", &S::positions),
                 field<S>("bitmask", &S::bitmask), field<S>("out_tokens", &S::out_tokens),
                 field<S>("out_logprobs", &S::out_logprobs));
}

void bind_drafting(py::module_& m) {
  using C = ChildrenArgs;
  bind_struct<C>(m, "ChildrenArgs", field<C>("logits", &C::logits), field<C>("k", &C::k),
                 field<C>("method", &C::method), field<C>("sampling", &C::sampling),
                 field<C>("seeds", &C::seeds), field<C>("positions", &C::positions),
                 field<C>("nodes", &C::nodes), field<C>("purpose", &C::purpose),
                 field<C>("out_tokens", &C::out_tokens), field<C>("out_scores", &C::out_scores));
  using D = NgramDraftArgs;
  bind_struct<D>(m, "NgramDraftArgs", field<D>("tokens", &D::tokens), field<D>("lengths", &D::lengths),
                 field<D>("requests", &D::requests), field<D>("width", &D::width),
                 field<D>("min_ngram", &D::min_ngram), field<D>("max_ngram", &D::max_ngram),
                 field<D>("cyclic", &D::cyclic), field<D>("frequent", &D::frequent),
                 field<D>("num_draft", &D::num_draft), field<D>("out", &D::out));
  using T = NgramTreeArgs;
  bind_struct<T>(m, "NgramTreeArgs", field<T>("tokens", &T::tokens), field<T>("lengths", &T::lengths),
                 field<T>("requests", &T::requests), field<T>("width", &T::width),
                 field<T>("min_ngram", &T::min_ngram), field<T>("max_ngram", &T::max_ngram),
                 field<T>("cyclic", &T::cyclic), field<T>("max_depth", &T::max_depth),
                 field<T>("branches", &T::branches), field<T>("max_nodes", &T::max_nodes),
                 field<T>("trust", &T::trust), field<T>("out_tokens", &T::out_tokens),
                 field<T>("out_parents", &T::out_parents), field<T>("out_scores", &T::out_scores));
}

void bind_attention(py::module_& m) {
  using R = HeadRows;
  bind_struct<R>(m, "HeadRows", field<R>("data", &R::data), field<R>("dtype", &R::dtype),
                 field<R>("row_stride", &R::row_stride), field<R>("head_stride", &R::head_stride));
  using C = HeadCache;
  bind_struct<C>(m, "HeadCache", field<C>("data", &C::data), field<C>("dtype", &C::dtype),
                 field<C>("page_stride", &C::page_stride), field<C>("slot_stride", &C::slot_stride),
                 field<C>("head_stride", &C::head_stride), field<C>("scales", &C::scales),
                 field<C>("scale", &C::scale));
  using A = AttentionArgs;
  bind_struct<A>(
      m, "AttentionArgs", field<A>("query", &A::query), field<A>("new_key", &A::new_key),
      field<A>("new_value", &A::new_value), field<A>("key", &A::key), field<A>("value", &A::value),
      field<A>("rows", &A::rows), field<A>("query_heads", &A::query_heads), field<A>("heads", &A::heads),
      field<A>("head", &A::head), field<A>("value_size", &A::value_size), field<A>("parents", &A::parents),
      field<A>("cu_nodes", &A::cu_nodes), field<A>("requests", &A::requests),
      field<A>("block_table", &A::block_table), field<A>("table_width", &A::table_width),
      field<A>("pages", &A::pages), field<A>("page_size", &A::page_size),
      field<A>("prefix_lens", &A::prefix_lens), field<A>("max_prefix", &A::max_prefix),
      field<A>("scale", &A::scale), field<A>("softcap", &A::softcap), field<A>("window", &A::window),
      field<A>("sinks", &A::sinks), field<A>("deterministic", &A::deterministic), field<A>("out", &A::out),
      field<A>("out_lse", &A::out_lse));
}

void bind_commit(py::module_& m) {
  using P = Paths;
  bind_struct<P>(m, "Paths", field<P>("nodes", &P::nodes), field<P>("width", &P::width),
                 field<P>("cu_nodes", &P::cu_nodes), field<P>("rows", &P::rows),
                 field<P>("requests", &P::requests));
  using C = CommitArgs;
  bind_struct<C>(m, "CommitArgs", field<C>("caches", &C::caches), field<C>("fresh", &C::fresh),
                 field<C>("cache_count", &C::cache_count), field<C>("paths", &C::paths),
                 field<C>("block_table", &C::block_table),
                 field<C>("pages_per_request", &C::pages_per_request),
                 field<C>("prefix_lens", &C::prefix_lens), field<C>("page_size", &C::page_size),
                 field<C>("out_lengths", &C::out_lengths), field<C>("out_pages_kept", &C::out_pages_kept));
}

void bind_states(py::module_& m) {
  using C = Commits;
  bind_struct<C>(m, "Commits", field<C>("paths", &C::paths), field<C>("slots", &C::slots));
  using R = StateRows;
  bind_struct<R>(m, "StateRows", field<R>("address", &R::address), field<R>("slots", &R::slots),
                 field<R>("slot_stride", &R::slot_stride), field<R>("row_bytes", &R::row_bytes));
  using S = Snapshots;
  bind_struct<S>(m, "Snapshots", field<S>("address", &S::address), field<S>("row_stride", &S::row_stride));
  using W = Windows;
  bind_struct<W>(m, "Windows", field<W>("address", &W::address), field<W>("slots", &W::slots),
                 field<W>("channels", &W::channels), field<W>("taps", &W::taps),
                 field<W>("slot_stride", &W::slot_stride), field<W>("channel_stride", &W::channel_stride),
                 field<W>("tap_stride", &W::tap_stride), field<W>("item_bytes", &W::item_bytes));
  using I = WindowInputs;
  bind_struct<I>(m, "WindowInputs", field<I>("address", &I::address), field<I>("row_stride", &I::row_stride),
                 field<I>("channel_stride", &I::channel_stride));
  using M = Matrices;
  bind_struct<M>(m, "Matrices", field<M>("address", &M::address), field<M>("dtype", &M::dtype),
                 field<M>("slots", &M::slots), field<M>("heads", &M::heads), field<M>("rows", &M::rows),
                 field<M>("columns", &M::columns), field<M>("slot_stride", &M::slot_stride),
                 field<M>("head_stride", &M::head_stride), field<M>("row_stride", &M::row_stride),
                 field<M>("column_stride", &M::column_stride));
  using N = NodeInputs;
  bind_struct<N>(m, "NodeInputs", field<N>("address", &N::address), field<N>("dtype", &N::dtype),
                 field<N>("heads", &N::heads), field<N>("size", &N::size),
                 field<N>("row_stride", &N::row_stride), field<N>("head_stride", &N::head_stride));
}

const Kernels& kernels_named(const std::string& isa) {
  const Kernels* table = isa == "avx512" ? avx512_kernels()
                         : isa == "avx2" ? avx2_kernels()
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
         Purpose purpose) {
        Leader leader;
        const double sum = kernels_named(isa).race(reinterpret_cast<const float*>(x), n, Weight{.max = max},
                                                   Stream(seed, position, purpose), 0, leader);
        return std::make_tuple(sum, leader.score, leader.token);
      },
      py::arg("isa"), py::arg("x"), py::arg("n"), py::arg("max"), py::arg("seed"), py::arg("position"),
      py::arg("purpose"));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  bind_enums(m);
  bind_rows(m);
  bind_verify(m);
  bind_drafting(m);
  bind_attention(m);
  bind_commit(m);
  bind_states(m);
  bind_kernels(m);
  const auto args = py::arg("args");
  const auto threads = py::arg("threads");
  const py::call_guard<py::gil_scoped_release> released;
  m.def("verify", &verify, args, threads, released);
  m.def("sample", &sample, args, threads, released);
  m.def("sample_children", &sample_children, args, threads, released);
  m.def("ngram_draft", &ngram_draft, args, threads, released);
  m.def("ngram_tree", &ngram_tree, args, threads, released);
  m.def("tree_attention", &tree_attention, args, threads, released);
  m.def("commit_kv", &commit_kv, args, threads, released);
  const auto commits = py::arg("commits");
  const auto states = py::arg("states");
  const auto inputs = py::arg("inputs");
  m.def("commit_state", &commit_state, commits, states, py::arg("snapshots"), threads, released);
  m.def("replay_conv", &replay_conv, commits, py::arg("windows"), inputs, threads, released);
  m.def("replay_gated_delta", &replay_gated_delta, commits, states, inputs, threads, released);
  m.def("replay_mamba2", &replay_mamba2, commits, states, inputs, threads, released);
  m.def("instruction_set", [] { return kernels().name; });
}
