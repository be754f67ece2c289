// SPDX-License-Identifier: Apache-2.0
// The functions of specdec.h before commits: what they are given is checked, and handed on. Values of arrays
// are not looked at here: the core takes any.
#include <algorithm>
#include <iterator>

#include "attention.h"
#include "budget.h"
#include "check.h"
#include "children.h"
#include "counts.h"
#include "edit_logits.h"
#include "enter.h"
#include "kernels.h"
#include "ngram.h"
#include "report.h"
#include "verify.h"

#ifndef SPECDEC_VERSION
#error "SPECDEC_VERSION is the version of the package, as a string"
#endif

namespace specdec {
namespace {

void check_rows(const Check& check, const specdec_rows& rows, int64_t least_size = 1) {
  check.value("dtype", rows.dtype, SPECDEC_FLOAT32, SPECDEC_FLOAT16);
  check.value("count", rows.count, 0, kMostItems);
  check.value("size", rows.size, least_size, kMostItems);
  check.value("group", rows.group, 0, kMostItems);
  const int64_t unit = bytes_of(rows.dtype), in_group = rows.group > 0 ? rows.group : rows.count;
  const int64_t groups = rows.group > 0 ? (rows.count + rows.group - 1) / rows.group : 1;
  check.memory("data", rows.data, unit, rows.size * unit,
               {{groups, rows.group_stride}, {in_group, rows.row_stride}});
}

void check_sampling(const Check& check, const specdec_sampling& sampling, int64_t count) {
  check.not_nan("temperature", sampling.temperature);
  check.not_nan("top_k", sampling.top_k);
  check.not_nan("top_p", sampling.top_p);
  check.not_nan("min_p", sampling.min_p);
  check.optional_array("temperatures", sampling.temperatures, count);
  check.optional_array("top_ks", sampling.top_ks, count);
  check.optional_array("top_ps", sampling.top_ps, count);
  check.optional_array("min_ps", sampling.min_ps, count);
  check.flag("min_p_last", sampling.min_p_last);
}

// Puts checked copies in place of the caller's logits and sampling.
void check_logits(const Check& check, const specdec_rows*& logits, specdec_rows& copy,
                  const specdec_sampling*& sampling, specdec_sampling& law) {
  check.required("logits", logits);
  check.replace("logits", logits, copy);
  check_rows(check.in("logits"), copy);
  check.replace("sampling", sampling, law);
  if (sampling) check_sampling(check.in("sampling"), law, copy.count);
}

void check_bitmask(const Check& check, const uint32_t* bitmask, int64_t stride, int64_t rows, int64_t size) {
  if (!bitmask) return;
  check.value("bitmask_stride", stride, 0, kMostItems);
  check.memory("bitmask", bitmask, 4, 4, {{rows, stride}, {(size + 31) / 32, 1}});
}

void check_edits(const Check& check, const specdec_edits& edits, int64_t requests) {
  check.value("slots", edits.slots, 0, kMostItems);
  check.value("capacity", edits.capacity, 0, INT32_MAX - 1);
  check.value("recent_width", edits.recent_width, 0, kMostItems);
  if (edits.count_tokens) {
    check.array("count_tokens", edits.count_tokens, edits.slots, edits.capacity);
    check.array("count_prompt", edits.count_prompt, edits.slots, edits.capacity);
    check.array("count_output", edits.count_output, edits.slots, edits.capacity);
    check.array("count_sizes", edits.count_sizes, edits.slots);
  }
  check.optional_array("recent", edits.recent, edits.slots, edits.recent_width);
  check.optional_array("request_slots", edits.request_slots, requests);
  check.not_nan("repetition", edits.repetition);
  check.not_nan("frequency", edits.frequency);
  check.not_nan("presence", edits.presence);
  check.optional_array("repetitions", edits.repetitions, requests);
  check.optional_array("frequencies", edits.frequencies, requests);
  check.optional_array("presences", edits.presences, requests);
  check.flag("penalize_prompt", edits.penalize_prompt);
  check.value("bias_count", edits.bias_count, 0, kMostItems);
  check.array("bias_tokens", edits.bias_tokens, requests, edits.bias_count);
  check.array("bias_values", edits.bias_values, requests, edits.bias_count);
  check.value("banned_count", edits.banned_count, 0, kMostItems);
  check.array("banned_tokens", edits.banned_tokens, requests, edits.banned_count);
  check.optional_array("banned_until", edits.banned_until, requests);
  check.value("bad_word_count", edits.bad_word_count, 0, kMostItems);
  check.value("bad_word_length", edits.bad_word_length, edits.bad_word_count ? 1 : 0, kMostItems);
  check.array("bad_words", edits.bad_words, requests, edits.bad_word_count * edits.bad_word_length);
  check.value("forced_count", edits.forced_count, 0, kMostItems);
  check.array("forced_tokens", edits.forced_tokens, requests, edits.forced_count);
}

void check_integers(const Check& check, const char* name, const void* data, int32_t are_int32, int64_t count,
                    int64_t width) {
  if (are_int32 != 0 && are_int32 != 1)
    check.refuse(SPECDEC_ERROR_VALUE, name, "must be int32_t (1) or int64_t (0), got %d", are_int32);
  if (are_int32)
    check.array(name, static_cast<const int32_t*>(data), count, width);
  else
    check.array(name, static_cast<const int64_t*>(data), count, width);
}

// How many numbers a rule has, and the ranges of each.
struct RuleValues {
  int64_t count;
  double least[2], most[2];
};
constexpr RuleValues kRuleValues[] = {
    {},
    {},
    {},
    {2, {0, 0}, {1, HUGE_VAL}},         // SPECDEC_TYPICAL
    {2, {1, 0}, {HUGE_VAL, 1}},         // SPECDEC_RELAXED
    {1, {1}, {HUGE_VAL}},               // SPECDEC_LENIENT
    {},                                 // SPECDEC_SYNTHETIC: any number of rates, whatever they are
    {2, {0, 0}, {HUGE_VAL, HUGE_VAL}},  // SPECDEC_DEFERRED
    {2, {0, 0}, {1, 1}},                // SPECDEC_THRESHOLD
    {1, {0}, {1}},                      // SPECDEC_ENSEMBLE
};
static_assert(std::size(kRuleValues) == SPECDEC_ENSEMBLE + 1);

void check_rule(const Check& check, const specdec_verify_args& args) {
  check.value("rule", args.rule, SPECDEC_MATCH, SPECDEC_ENSEMBLE);
  const RuleValues& values = kRuleValues[args.rule];
  const bool many = args.rule == SPECDEC_SYNTHETIC;
  check.value("rule_value_count", args.rule_value_count, many ? 1 : values.count,
              many ? kMostItems : values.count);
  check.array("rule_values", args.rule_values, args.rule_value_count);
  const char* names[] = {"rule_values[0]", "rule_values[1]"};
  for (int64_t i = 0; i < values.count; ++i)
    check.number(names[i], args.rule_values[i], values.least[i], values.most[i]);
}

void check_draft(const Check& check, const specdec_verify_args& args, int64_t vocab) {
  check_rows(check.in("draft"), *args.draft, 0);
  check.value("draft_chain", args.draft_chain, 0, kMostItems);
  check.value("draft_form", args.draft_form, SPECDEC_DRAFT_LOGITS, SPECDEC_DRAFT_PROBS);
  check.optional_array("draft_rows", args.draft_rows, args.nodes);
  check.optional_array("draft_ids", args.draft_ids, args.draft->size);
  check.optional_array("draft_columns", args.draft_columns, vocab);
  if (!args.draft_ids != !args.draft_columns && args.draft->size)
    check.refuse(SPECDEC_ERROR_NULL, args.draft_ids ? "draft_columns" : "draft_ids",
                 "must not be null where its inverse is given");
}

void check_logprobs(const Check& check, const specdec_logprobs& logprobs, int64_t requests, int64_t width) {
  const int64_t places = requests * width;
  check.value("kind", logprobs.kind, SPECDEC_LAW_PROCESSED, SPECDEC_LAW_TEMPERATURE);
  check.value("top", logprobs.top, 0, kMostTop);
  check.value("chosen_count", logprobs.chosen_count, 0, kMostItems);
  check.array("chosen", logprobs.chosen, requests, logprobs.chosen_count);
  check.array("out_top_logprobs", logprobs.out_top_logprobs, places, logprobs.top);
  check.array("out_top_tokens", logprobs.out_top_tokens, places, logprobs.top);
  check.array("out_ranks", logprobs.out_ranks, requests, width);
  check.array("out_chosen_logprobs", logprobs.out_chosen_logprobs, places, logprobs.chosen_count);
}

void check_masks(const Check& check, const specdec_masks& masks, const specdec_verify_args& args) {
  const int64_t places = args.requests * args.width;
  if (masks.out_bits && masks.out_ids)
    check.refuse(SPECDEC_ERROR_VALUE, "out_ids", "must be null where out_bits is given, got another");
  check.value("capacity", masks.capacity, 0, kMostItems);
  if (masks.out_bits) {
    check.array("out_bits", masks.out_bits, places, (args.target->size + 31) / 32);
  } else {
    check.array("out_ids", masks.out_ids, masks.capacity);
    check.array("out_offsets", masks.out_offsets, places + 1);
  }
  check.array("out_counts", masks.out_counts, args.requests, args.width);
  check.optional_array("out_mass", masks.out_mass, args.requests, args.width);
}

void check_verify(const Check& check, const specdec_verify_args& args) {
  const int64_t vocab = args.target->size, nodes = args.nodes, requests = args.requests;
  check_rows(check.in("target"), *args.target);
  check.value("requests", requests, 0, kMostItems);
  check.flag("rows_end_early", args.rows_end_early);
  const bool row_of_each = !args.target_rows && !args.rows_end_early;
  check.value("nodes", nodes, 0, row_of_each ? args.target->count : kMostItems);
  check.optional_array("target_rows", args.target_rows, nodes);
  check.value("width", args.width, 1, kMostItems);
  check.array("tokens", args.tokens, nodes);
  check.array("parents", args.parents, nodes);
  check.array("cu_nodes", args.cu_nodes, requests + 1);
  check.array("proposals", args.proposals, nodes);
  if (args.first_child || args.next_sibling) {
    check.array("first_child", args.first_child, nodes);
    check.array("next_sibling", args.next_sibling, nodes);
  }
  if (args.draft) check_draft(check, args, vocab);
  if (args.sampling) check_sampling(check.in("sampling"), *args.sampling, requests);
  if (args.draft_sampling) check_sampling(check.in("draft_sampling"), *args.draft_sampling, requests);
  check_rule(check, args);
  check.array("seeds", args.seeds, requests);
  check.array("positions", args.positions, requests);
  check_bitmask(check, args.bitmask, args.bitmask_stride, nodes, vocab);
  check_integers(check, "out_tokens", args.out_tokens, args.out_tokens_are_int32, requests, args.width);
  if (args.edits) check_edits(check.in("edits"), *args.edits, requests);
  if (args.bonus_tokens)
    check_integers(check, "bonus_tokens", args.bonus_tokens, args.bonus_tokens_are_int32, requests, 1);
  check.value("stop_count", args.stop_count, 0, kMostItems);
  check.array("stop_tokens", args.stop_tokens, requests, args.stop_count);
  check.optional_array("new_tokens_left", args.new_tokens_left, requests);
  check.optional_array("context_left", args.context_left, requests);
  check.optional_array("finished", args.finished, requests);
  check.array("out_num_tokens", args.out_num_tokens, requests);
  check.array("out_num_accepted", args.out_num_accepted, requests);
  check.array("out_path", args.out_path, requests, args.width);
  check.optional_array("out_logprobs", args.out_logprobs, requests, args.width);
  check.array("out_status", args.out_status, requests);
  check.optional_array("out_finish", args.out_finish, requests);
  if (args.logprobs) check_logprobs(check.in("logprobs"), *args.logprobs, requests, args.width);
  if (args.masks) check_masks(check.in("masks"), *args.masks, args);
  check.optional_array("trace_thresholds", args.trace_thresholds, nodes);
  check.optional_array("trace_masses", args.trace_masses, nodes);
}

// Puts a checked copy in place of the caller's budget, and checks the trees that it is asked about.
template <class Args>
void check_budget(const Check& check, Args& args, specdec_budget& budget) {
  check.required("budget", args.budget);
  check.replace("budget", args.budget, budget);
  const Check field = check.in("budget");
  field.value("max_rows", budget.max_rows, 1, kMostItems - 1);
  field.value("slots", budget.slots, 0, kMostItems);
  field.array("costs", budget.costs, budget.max_rows + 1);
  field.array("credit", budget.credit, 1);
  field.array("idle_steps", budget.idle_steps, 1);
  field.array("promised", budget.promised, budget.slots, 9);
  field.array("kept", budget.kept, budget.slots, 9);
  check.value("requests", args.requests, 0, kMostItems - 1);
  check.value("nodes", args.nodes, 0, kMostItems);
  check.array("parents", args.parents, args.nodes);
  check.array("cu_nodes", args.cu_nodes, args.requests + 1);
  check.array("proposals", args.proposals, args.nodes);
  check.array("scores", args.scores, args.nodes);
  check.optional_array("request_slots", args.request_slots, args.requests);
}

void check_search(const Check& check, const specdec_ngram_search& search) {
  check.value("requests", search.requests, 0, kMostItems);
  check.value("width", search.width, 0);
  check.value("min_ngram", search.min_ngram, 1);
  check.value("max_ngram", search.max_ngram, search.min_ngram);
  check.flag("cyclic", search.cyclic);
  check.array("tokens", search.tokens, search.requests, search.width);
  check.array("lengths", search.lengths, search.requests);
}

void check_head_rows(const Check& check, const specdec_head_rows& rows, int64_t nodes, int64_t heads,
                     int64_t size) {
  check.value("dtype", rows.dtype, SPECDEC_FLOAT32, SPECDEC_FLOAT16);
  check.memory("data", rows.data, bytes_of(rows.dtype), size * bytes_of(rows.dtype),
               {{nodes, rows.row_stride}, {heads, rows.head_stride}});
}

void check_head_cache(const Check& check, const specdec_head_cache& cache, const specdec_attention_args& args,
                      int64_t size) {
  check.value("dtype", cache.dtype, SPECDEC_FLOAT32, SPECDEC_FLOAT8_E4M3FN);
  const int64_t unit = bytes_of(cache.dtype);
  check.memory("data", cache.data, unit, size * unit,
               {{args.pages, cache.page_stride},
                {args.page_size, cache.slot_stride},
                {args.heads, cache.head_stride}});
  check.optional_array("scales", cache.scales, args.heads);
  check.not_nan("scale", cache.scale);
}

void check_attention(const Check& check, const specdec_attention_args& args) {
  check.value("nodes", args.nodes, 0, kMostItems);
  check.value("query_heads", args.query_heads, 0, kMostHeads);
  check.value("heads", args.heads, 0, kMostHeads);
  if (args.heads ? args.query_heads % args.heads : args.query_heads)
    check.refuse(SPECDEC_ERROR_VALUE, "heads", "must divide query_heads, got %d for %d",
                 static_cast<int>(args.heads), static_cast<int>(args.query_heads));
  check.value("head", args.head, 0, kMostHeads);
  check.value("value_size", args.value_size, 0, kMostHeads);
  check.value("requests", args.requests, 0, kMostItems);
  check.value("table_width", args.table_width, 0, kMostItems);
  check.value("pages", args.pages, 0, kMostItems);
  check.value("page_size", args.page_size, 1, kMostItems);
  check.value("max_prefix", args.max_prefix, 0);
  check.value("window", args.window, 0);
  check.not_nan("scale", args.scale);
  check.number("softcap", args.softcap, 0);
  check.flag("deterministic", args.deterministic);
  check_head_rows(check.in("query"), *args.query, args.nodes, args.query_heads, args.head);
  if (!args.new_key != !args.new_value)
    check.refuse(SPECDEC_ERROR_NULL, args.new_key ? "new_value" : "new_key",
                 "must not be null where the other is given");
  if (args.new_key) {
    check_head_rows(check.in("new_key"), *args.new_key, args.nodes, args.heads, args.head);
    check_head_rows(check.in("new_value"), *args.new_value, args.nodes, args.heads, args.value_size);
  }
  check_head_cache(check.in("key"), *args.key, args, args.head);
  check_head_cache(check.in("value"), *args.value, args, args.value_size);
  check.array("parents", args.parents, args.nodes);
  check.array("cu_nodes", args.cu_nodes, args.requests + 1);
  check.array("block_table", args.block_table, args.requests, args.table_width);
  check.array("prefix_lens", args.prefix_lens, args.requests);
  check.optional_array("sinks", args.sinks, args.query_heads);
  const int64_t unit = bytes_of(args.query->dtype), row = args.query_heads * args.value_size;
  check.memory("out", args.out, unit, row * unit, {{args.nodes, row}});
  check.optional_array("out_lse", args.out_lse, args.nodes, args.query_heads);
}

}  // namespace
}  // namespace specdec

using namespace specdec;

const char* specdec_version(void) { return SPECDEC_VERSION; }
uint32_t specdec_abi_version(void) { return SPECDEC_ABI_VERSION; }
const char* specdec_instruction_set(void) { return kernels().name; }

specdec_result specdec_verify(const specdec_verify_args* given, int32_t threads) {
  return guarded("specdec_verify", threads, [&](const Check& check) {
    specdec_verify_args args = check.known("args", given);
    specdec_rows target, draft;
    specdec_sampling sampling, draft_sampling;
    specdec_logprobs logprobs;
    specdec_masks masks;
    specdec_edits edits;
    check.required("target", args.target);
    check.replace("target", args.target, target);
    check.replace("draft", args.draft, draft);
    check.replace("sampling", args.sampling, sampling);
    check.replace("draft_sampling", args.draft_sampling, draft_sampling);
    check.replace("logprobs", args.logprobs, logprobs);
    check.replace("masks", args.masks, masks);
    check.replace("edits", args.edits, edits);
    check_verify(check, args);
    if (!args.draft_sampling) args.draft_sampling = args.sampling;
    if (args.rule == SPECDEC_THRESHOLD) args.draft = nullptr;  // all children count as POINT
    verify(args, threads);
  });
}

specdec_result specdec_sample(const specdec_sample_args* given, int32_t threads) {
  return guarded("specdec_sample", threads, [&](const Check& check) {
    specdec_sample_args args = check.known("args", given);
    specdec_rows logits;
    specdec_sampling sampling;
    specdec_edits edits;
    check_logits(check, args.logits, logits, args.sampling, sampling);
    check.replace("edits", args.edits, edits);
    if (args.edits) check_edits(check.in("edits"), edits, logits.count);
    check.array("seeds", args.seeds, logits.count);
    check.array("positions", args.positions, logits.count);
    check_bitmask(check, args.bitmask, args.bitmask_stride, logits.count, logits.size);
    check.array("out_tokens", args.out_tokens, logits.count);
    check.optional_array("out_logprobs", args.out_logprobs, logits.count);
    specdec_logprobs logprobs;
    check.replace("logprobs", args.logprobs, logprobs);
    if (args.logprobs) check_logprobs(check.in("logprobs"), *args.logprobs, logits.count, 1);
    sample(args, threads);
  });
}

specdec_result specdec_edit_logits(const specdec_edit_logits_args* given, int32_t threads) {
  return guarded("specdec_edit_logits", threads, [&](const Check& check) {
    specdec_edit_logits_args args = check.known("args", given);
    specdec_rows logits;
    specdec_edits edits;
    check.required("logits", args.logits);
    check.replace("logits", args.logits, logits);
    check_rows(check.in("logits"), logits);
    check.required("edits", args.edits);
    check.replace("edits", args.edits, edits);
    check.value("requests", args.requests, 0, args.cu_nodes ? kMostItems : logits.count);
    check_edits(check.in("edits"), edits, args.requests);
    check.value("nodes", args.nodes, 0, args.cu_nodes && !args.target_rows ? logits.count : kMostItems);
    if (args.cu_nodes) {
      check.array("tokens", args.tokens, args.nodes);
      check.array("parents", args.parents, args.nodes);
      check.array("cu_nodes", args.cu_nodes, args.requests + 1);
      check.optional_array("target_rows", args.target_rows, args.nodes);
    }
    edit_logits(args, threads);
  });
}

specdec_result specdec_count_tokens(const specdec_count_tokens_args* given, int32_t threads) {
  return guarded("specdec_count_tokens", threads, [&](const Check& check) {
    const specdec_count_tokens_args args = check.known("args", given);
    check.value("requests", args.requests, 0, kMostItems);
    check.value("width", args.width, 0, kMostItems);
    check.value("vocab", args.vocab, 1, kMostItems);
    check_integers(check, "tokens", args.tokens, args.tokens_are_int32, args.requests, args.width);
    check.optional_array("num_tokens", args.num_tokens, args.requests);
    check.optional_array("request_slots", args.request_slots, args.requests);
    check.value("slots", args.slots, 0, kMostItems);
    check.value("capacity", args.capacity, 0, INT32_MAX - 1);
    check.value("recent_width", args.recent_width, 0, kMostItems);
    check.array("count_tokens", args.count_tokens, args.slots, args.capacity);
    check.array("count_prompt", args.count_prompt, args.slots, args.capacity);
    check.array("count_output", args.count_output, args.slots, args.capacity);
    check.array("count_sizes", args.count_sizes, args.slots);
    check.array("recent", args.recent, args.slots, args.recent_width);
    count_tokens(args);
  });
}

specdec_result specdec_sample_children(const specdec_children_args* given, int32_t threads) {
  return guarded("specdec_sample_children", threads, [&](const Check& check) {
    specdec_children_args args = check.known("args", given);
    specdec_rows logits;
    specdec_sampling sampling;
    check_logits(check, args.logits, logits, args.sampling, sampling);
    check.value("k", args.k, 1, 256);
    check.value("method", args.method, SPECDEC_CHILDREN_INDEPENDENT, SPECDEC_CHILDREN_HYBRID);
    check.value("purpose", args.purpose, SPECDEC_PURPOSE_NEXT, SPECDEC_PURPOSE_DRAFT);
    check.array("seeds", args.seeds, logits.count);
    check.array("positions", args.positions, logits.count);
    check.array("nodes", args.nodes, logits.count);
    check.array("out_tokens", args.out_tokens, logits.count, args.k);
    check.array("out_scores", args.out_scores, logits.count, args.k);
    sample_children(args, threads);
  });
}

specdec_result specdec_ngram_draft(const specdec_ngram_draft_args* given, int32_t threads) {
  return guarded("specdec_ngram_draft", threads, [&](const Check& check) {
    specdec_ngram_draft_args args = check.known("args", given);
    specdec_ngram_search search;
    check.required("search", args.search);
    check.replace("search", args.search, search);
    check_search(check.in("search"), search);
    check.flag("frequent", args.frequent);
    check.value("num_draft", args.num_draft, 0, kMostItems);
    check.array("out", args.out, search.requests, args.num_draft);
    ngram_draft(args, threads);
  });
}

specdec_result specdec_ngram_tree(const specdec_ngram_tree_args* given, int32_t threads) {
  return guarded("specdec_ngram_tree", threads, [&](const Check& check) {
    specdec_ngram_tree_args args = check.known("args", given);
    specdec_ngram_search search;
    check.required("search", args.search);
    check.replace("search", args.search, search);
    check_search(check.in("search"), search);
    check.value("max_depth", args.max_depth, 0);
    check.value("branches", args.branches, 1);
    check.value("max_nodes", args.max_nodes, 1, kMostItems);
    check.value("trust_count", args.trust_count, 1);
    check.array("trust", args.trust, args.trust_count);
    for (int64_t i = 0; i < args.trust_count; ++i) check.number("trust", args.trust[i], 0, 1);
    check.array("out_tokens", args.out_tokens, search.requests, args.max_nodes);
    check.array("out_parents", args.out_parents, search.requests, args.max_nodes);
    check.array("out_scores", args.out_scores, search.requests, args.max_nodes);
    ngram_tree(args, threads);
  });
}

specdec_result specdec_select_nodes(const specdec_select_nodes_args* given, int32_t threads) {
  return guarded("specdec_select_nodes", threads, [&](const Check& check) {
    specdec_select_nodes_args args = check.known("args", given);
    specdec_budget budget;
    check_budget(check, args, budget);
    check.value("requests", args.requests, 0, budget.max_rows);
    check.number("prior", args.prior, 0);
    check.array("tokens", args.tokens, args.nodes);
    check.optional_array("draft_rows", args.draft_rows, args.nodes);
    check.optional_array("weights", args.weights, args.requests);
    const int64_t rows = std::min(budget.max_rows, args.nodes);
    check.array("out_tokens", args.out_tokens, rows);
    check.array("out_parents", args.out_parents, rows);
    check.array("out_cu_nodes", args.out_cu_nodes, args.requests + 1);
    check.array("out_proposals", args.out_proposals, rows);
    check.array("out_scores", args.out_scores, rows);
    check.array("out_rows", args.out_rows, rows);
    if (args.draft_rows) check.array("out_draft_rows", args.out_draft_rows, rows);
    select_nodes(args);
  });
}

specdec_result specdec_update_budget(const specdec_update_budget_args* given, int32_t threads) {
  return guarded("specdec_update_budget", threads, [&](const Check& check) {
    specdec_update_budget_args args = check.known("args", given);
    specdec_budget budget;
    check_budget(check, args, budget);
    check.number("decay", args.decay, 0, 1);
    check.number("allowance", args.allowance, 0);
    check.not_nan("max_credit", args.max_credit);
    check.value("width", args.width, 0, kMostItems);
    check.array("path", args.path, args.requests, args.width);
    check.array("num_tokens", args.num_tokens, args.requests);
    update_budget(args);
  });
}

specdec_result specdec_enter_chains(const specdec_enter_chains_args* given, int32_t threads) {
  return guarded("specdec_enter_chains", threads, [&](const Check& check) {
    const specdec_enter_chains_args args = check.known("args", given);
    check.value("requests", args.requests, 0, kMostItems - 1);
    check.value("draft_count", args.draft_count, 0, kMostItems - args.requests);
    const int64_t rows = args.draft_count + args.requests;
    check_integers(check, "drafts", args.drafts, args.drafts_are_int32, args.draft_count, 1);
    check_integers(check, "cu_drafts", args.cu_drafts, args.cu_drafts_are_int32, args.requests, 1);
    check.array("out_tokens", args.out_tokens, rows);
    check.array("out_parents", args.out_parents, rows);
    check.array("out_cu_nodes", args.out_cu_nodes, args.requests + 1);
    enter_chains(args);
  });
}

specdec_result specdec_enter_links(const specdec_enter_links_args* given, int32_t threads) {
  return guarded("specdec_enter_links", threads, [&](const Check& check) {
    const specdec_enter_links_args args = check.known("args", given);
    check.value("requests", args.requests, 0, kMostItems);
    check.value("nodes", args.nodes, 0, kMostItems);
    check.value("columns", args.columns, 0, args.nodes);
    if (args.tokens) {
      check_integers(check, "tokens", args.tokens, args.tokens_are_int32, args.requests, args.columns);
      check.array("out_tokens", args.out_tokens, args.requests, args.nodes);
    }
    const int32_t are_int32 = args.links_are_int32;
    check_integers(check, "next_token", args.next_token, are_int32, args.requests, args.nodes);
    check_integers(check, "next_sibling", args.next_sibling, are_int32, args.requests, args.nodes);
    check.array("out_parents", args.out_parents, args.requests, args.nodes);
    check.array("out_first_child", args.out_first_child, args.requests, args.nodes);
    check.array("out_next_sibling", args.out_next_sibling, args.requests, args.nodes);
    enter_links(args);
  });
}

specdec_result specdec_tree_attention(const specdec_attention_args* given, int32_t threads) {
  return guarded("specdec_tree_attention", threads, [&](const Check& check) {
    specdec_attention_args args = check.known("args", given);
    specdec_head_rows query, new_key, new_value;
    specdec_head_cache key, value;
    check.required("query", args.query);
    check.required("key", args.key);
    check.required("value", args.value);
    check.replace("query", args.query, query);
    check.replace("new_key", args.new_key, new_key);
    check.replace("new_value", args.new_value, new_value);
    check.replace("key", args.key, key);
    check.replace("value", args.value, value);
    check_attention(check, args);
    tree_attention(args, threads);
  });
}
