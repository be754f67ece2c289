// SPDX-License-Identifier: Apache-2.0
// Random calls of the C interface: `c_fuzz SEED CALLS`. Sizes are those of the memory that is given, arrays
// hold whatever they hold, and now and then a field is null, negative, or too large. No call may crash, read
// or write outside, or return what the header does not name. Memory has its exact size, so that a sanitizer
// sees what lies outside.
#include "c_fuzz.h"

#include "c_fuzz_commit.h"

_Static_assert(offsetof(specdec_rows, dtype) == 16 && offsetof(specdec_head_cache, dtype) == 16 &&
                   offsetof(specdec_head_rows, dtype) == 16 && offsetof(specdec_head_cache, data) == 8,
               "where what stays lies");

static specdec_rows rows(int64_t count, int64_t size) {
  specdec_rows out = {SPECDEC_STRUCT(specdec_rows), .dtype = (specdec_dtype)below(3), .count = count,
                      .size = size, .row_stride = size + below(3)};
  if (count && rarely(3)) out.group = between(1, count), out.group_stride = out.group * out.row_stride;
  out.data = scores(count ? (count - 1) * out.row_stride + size : 0, out.dtype);
  return out;
}
static specdec_sampling sampling(int64_t requests) {
  specdec_sampling out = {SPECDEC_STRUCT(specdec_sampling),
                          .temperature = real(),
                          .top_k = real(),
                          .top_p = rarely(2) ? 1 : real() / 4,
                          .min_p = rarely(2) ? 0 : real() / 4,
                          .min_p_last = (int32_t)below(2)};
  if (rarely(3)) out.temperatures = reals(requests);
  if (rarely(3)) out.top_ks = reals(requests);
  if (rarely(3)) out.top_ps = reals(requests);
  if (rarely(3)) out.min_ps = reals(requests);
  return out;
}

// Mostly such as some rule takes.
static double* rule_values(void) {
  double* values = reals(2);
  for (int i = 0; i < 2; ++i)
    if (!rarely(6)) values[i] = (double)below(3) / 2;
  return values;
}

static specdec_edits edits(int64_t requests, int64_t vocab) {
  const int64_t slots = below(5), capacity = between(1, 40), width = below(4), many = below(5);
  specdec_edits out = {SPECDEC_STRUCT(specdec_edits),
                       .slots = slots,
                       .capacity = capacity,
                       .recent_width = width,
                       .repetition = real(),
                       .frequency = real(),
                       .presence = real(),
                       .penalize_prompt = (int32_t)below(2),
                       .bias_tokens = longs(requests * many, vocab),
                       .bias_values = floats(requests * many),
                       .bias_count = many,
                       .banned_tokens = longs(requests * many, vocab),
                       .banned_count = many,
                       .bad_words = longs(requests * many * 3, vocab),
                       .bad_word_count = many,
                       .bad_word_length = 3,
                       .forced_tokens = longs(requests * many, vocab),
                       .forced_count = many};
  if (!rarely(3)) {
    out.count_tokens = ints(slots * capacity, vocab), out.count_sizes = ints(slots, capacity + 1);
    out.count_prompt = ints(slots * capacity, 9), out.count_output = ints(slots * capacity, 9);
  }
  if (rarely(2)) out.recent = longs(slots * width, vocab);
  if (rarely(2)) out.request_slots = longs(requests, slots);
  if (rarely(3)) out.repetitions = floats(requests);
  if (rarely(3)) out.frequencies = floats(requests), out.presences = floats(requests);
  if (rarely(2)) out.banned_until = ints(requests, 3);
  return out;
}

static specdec_logprobs logprobs(int64_t requests, int64_t width, int64_t vocab) {
  const int64_t top = between(0, 20), chosen = below(4), places = requests * width;
  return (specdec_logprobs){SPECDEC_STRUCT(specdec_logprobs),
                            .kind = (specdec_law)below(3),
                            .top = top,
                            .chosen = longs(requests * chosen, vocab),
                            .chosen_count = chosen,
                            .out_top_logprobs = memory(places * top * 4),
                            .out_top_tokens = memory(places * top * 8),
                            .out_ranks = memory(places * 4),
                            .out_chosen_logprobs = memory(places * chosen * 4)};
}
static specdec_masks masks(int64_t places, int64_t vocab) {
  specdec_masks out = {SPECDEC_STRUCT(specdec_masks), .out_counts = memory(places * 4),
                       .out_mass = memory(places * 4)};
  if (rarely(2)) {
    out.out_bits = memory(places * ((vocab + 31) / 32) * 4);
    return out;
  }
  out.capacity = rarely(2) ? below(9) : places * vocab;
  out.out_ids = memory(out.capacity * 8);
  out.out_offsets = memory((places + 1) * 8);
  return out;
}

static specdec_result fuzz_verify(int32_t threads) {
  const int64_t vocab = rarely(20) ? 20000 : between(1, 300), words = (vocab + 31) / 32 + below(2);
  const int64_t requests = below(4), nodes = requests * between(0, 7) + below(2), width = between(1, 6);
  const int64_t drafts = below(nodes + 2);
  specdec_rows target = rows(nodes + below(2), vocab), draft = rows(drafts, between(0, 2 * vocab));
  specdec_sampling law = sampling(requests), draft_law = sampling(requests);
  specdec_edits changes = edits(requests, vocab);
  uint8_t* proposals = memory(nodes);
  for (int64_t i = 0; i < nodes; ++i) proposals[i] = (uint8_t)(rarely(20) ? 255 : below(3));
  specdec_verify_args args = {SPECDEC_STRUCT(specdec_verify_args),
                              .target = &target,
                              .requests = requests,
                              .nodes = nodes,
                              .tokens = longs(nodes, vocab),
                              .parents = tree(nodes),
                              .cu_nodes = offsets(requests, nodes),
                              .proposals = proposals,
                              .draft_chain = rarely(2) ? below(6) : 0,
                              .draft_form = (specdec_draft_form)below(3),
                              .rule = (specdec_rule)below(SPECDEC_ENSEMBLE + 1),
                              .rule_values = rule_values(),
                              .seeds = longs(requests, 9),
                              .positions = longs(requests, 9),
                              .width = width,
                              .out_tokens = memory(requests * width * 8),
                              .out_num_tokens = memory(requests * 4),
                              .out_num_accepted = memory(requests * 4),
                              .out_path = memory(requests * width * 4),
                              .out_status = memory(requests * 4)};
  const int64_t counts[] = {0, 0, 0, 2, 2, 1, 2, 2, 2, 1};
  _Static_assert(sizeof counts / sizeof *counts == SPECDEC_ENSEMBLE + 1, "a count for each rule");
  args.rule_value_count = rarely(10) ? below(3) : counts[args.rule];
  if (rarely(3)) args.target_rows = ints(nodes, target.count), args.nodes = nodes;
  if (rarely(4)) args.rows_end_early = 1;
  if (rarely(3)) args.bonus_tokens = longs(requests, vocab);
  if (rarely(9)) args.bonus_tokens_are_int32 = args.out_tokens_are_int32 = 1;  // half of the memory
  if (rarely(2)) args.edits = &changes;
  if (rarely(2)) args.sampling = &law;
  if (rarely(2)) args.draft = &draft;
  if (rarely(2)) args.draft_sampling = &draft_law;
  if (rarely(2)) args.first_child = tree(nodes), args.next_sibling = tree(nodes);
  if (rarely(2)) args.draft_rows = ints(nodes, draft.count);
  if (rarely(2)) args.draft_ids = longs(draft.size, vocab), args.draft_columns = ints(vocab, draft.size);
  if (rarely(2)) args.bitmask = (uint32_t*)ints(nodes * words, INT32_MAX), args.bitmask_stride = words;
  if (rarely(2)) args.out_logprobs = memory(requests * width * 4);
  specdec_logprobs report = logprobs(requests, width, vocab);
  specdec_masks left = masks(requests * width, vocab);
  if (rarely(2)) args.logprobs = &report;
  if (rarely(2)) args.masks = &left;
  if (rarely(4)) spoil(&report, sizeof report, 0, 0);
  if (rarely(4)) spoil(&left, sizeof left, 0, 0);
  if (rarely(3)) args.stop_count = below(4), args.stop_tokens = longs(requests * args.stop_count, vocab);
  if (rarely(3)) args.new_tokens_left = ints(requests, 5);
  if (rarely(3)) args.context_left = ints(requests, 5);
  if (rarely(2)) args.out_finish = memory(requests * 4);
  spoil(&args, sizeof args, offsetof(specdec_verify_args, proposals),
        offsetof(specdec_verify_args, first_child));
  uint8_t* finished = memory(requests);  // of bytes too
  for (int64_t i = 0; i < requests; ++i) finished[i] = (uint8_t)below(2);
  args.finished = rarely(3) ? finished : NULL;  // not what the field was spoilt with
  if (rarely(4)) spoil(&target, sizeof target, 16, 24);
  if (rarely(4)) spoil(&draft, sizeof draft, 16, 24);
  if (rarely(4)) spoil(&law, sizeof law, 0, 0);
  if (rarely(4)) spoil(&changes, sizeof changes, 0, 0);
  const specdec_result result = specdec_verify(&args, threads);
  const int64_t count = result == SPECDEC_OK && args.width == width ? args.requests * width : 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token =
        args.out_tokens_are_int32 ? ((int32_t*)args.out_tokens)[i] : ((int64_t*)args.out_tokens)[i];
    if (token < -1 || token >= vocab) abort();
  }
  return result;
}

static specdec_result fuzz_sample(int32_t threads) {
  const int64_t count = below(4), vocab = rarely(20) ? 30000 : between(1, 300), words = (vocab + 31) / 32;
  specdec_rows logits = rows(count, vocab);
  specdec_sampling law = sampling(count);
  specdec_edits changes = edits(count, vocab);
  specdec_sample_args args = {SPECDEC_STRUCT(specdec_sample_args), .logits = &logits,
                              .seeds = longs(count, 9), .positions = longs(count, 9),
                              .out_tokens = memory(count * 8)};
  if (rarely(2)) args.edits = &changes;
  if (rarely(2)) args.sampling = &law;
  if (rarely(2)) args.bitmask = (uint32_t*)ints(count * words, INT32_MAX), args.bitmask_stride = words;
  if (rarely(2)) args.out_logprobs = memory(count * 4);
  specdec_logprobs report = logprobs(count, 1, vocab);
  if (rarely(2)) args.logprobs = &report;
  if (rarely(4)) spoil(&report, sizeof report, 0, 0);
  spoil(&args, sizeof args, 0, 0);
  if (rarely(4)) spoil(&logits, sizeof logits, 16, 24);
  return specdec_sample(&args, threads);
}

static specdec_result fuzz_edit_logits(int32_t threads) {
  const int64_t vocab = rarely(20) ? 20000 : between(1, 300), requests = below(4),
                nodes = requests * below(5);
  specdec_rows logits = rows(nodes + requests, vocab);
  specdec_edits changes = edits(requests, vocab);
  specdec_edit_logits_args args = {SPECDEC_STRUCT(specdec_edit_logits_args), .logits = &logits,
                                   .requests = requests, .edits = &changes};
  if (rarely(2)) {
    args.nodes = nodes, args.cu_nodes = offsets(requests, nodes);
    args.tokens = longs(nodes, vocab), args.parents = tree(nodes);
    if (rarely(2)) args.target_rows = ints(nodes, logits.count);
  }
  spoil(&args, sizeof args, 0, 0);
  if (rarely(4)) spoil(&changes, sizeof changes, 0, 0);
  return specdec_edit_logits(&args, threads == 1 || !args.target_rows ? threads : 1);  // rows may be shared
}

static specdec_result fuzz_count_tokens(int32_t threads) {
  const int64_t requests = below(5), width = below(7), slots = below(5), capacity = between(1, 9);
  const int64_t vocab = between(1, 20), recent = below(4);
  specdec_count_tokens_args args = {SPECDEC_STRUCT(specdec_count_tokens_args),
                                    .requests = requests,
                                    .width = width,
                                    .vocab = vocab,
                                    .tokens = longs(requests * width, vocab),
                                    .tokens_are_int32 = (int32_t)below(2),
                                    .slots = slots,
                                    .capacity = capacity,
                                    .recent_width = recent,
                                    .count_tokens = ints(slots * capacity, vocab),
                                    .count_prompt = ints(slots * capacity, 9),
                                    .count_output = ints(slots * capacity, 9),
                                    .count_sizes = ints(slots, capacity + 1),
                                    .recent = longs(slots * recent, vocab)};
  if (rarely(2)) args.num_tokens = ints(requests, width);
  if (rarely(2)) args.request_slots = longs(requests, slots);
  spoil(&args, sizeof args, 0, 0);
  return specdec_count_tokens(&args, threads);
}

static specdec_result fuzz_children(int32_t threads) {
  const int64_t count = below(4), k = between(1, 9);
  specdec_rows logits = rows(count, rarely(20) ? 30000 : between(1, 300));
  specdec_sampling law = sampling(count);
  specdec_children_args args = {SPECDEC_STRUCT(specdec_children_args),
                                .logits = &logits,
                                .k = k,
                                .method = (specdec_method)below(4),
                                .purpose = SPECDEC_PURPOSE_DRAFT,
                                .seeds = longs(count, 9),
                                .positions = longs(count, 9),
                                .nodes = longs(count, 9),
                                .out_tokens = memory(count * k * 8),
                                .out_scores = memory(count * k * 4)};
  if (rarely(2)) args.sampling = &law;
  spoil(&args, sizeof args, 0, 0);
  if (rarely(4)) spoil(&law, sizeof law, 0, 0);
  return specdec_sample_children(&args, threads);
}

static specdec_result fuzz_ngram(int32_t threads) {
  const int64_t requests = below(4), width = below(40), many = between(1, 9);
  specdec_ngram_search search = {SPECDEC_STRUCT(specdec_ngram_search),
                                 .tokens = longs(requests * width, 3),
                                 .lengths = longs(requests, width),
                                 .requests = requests,
                                 .width = width,
                                 .min_ngram = between(1, 2),
                                 .max_ngram = between(2, 5),
                                 .cyclic = (int32_t)below(2)};
  if (rarely(4)) spoil(&search, sizeof search, 0, 0);
  if (rarely(2)) {
    specdec_ngram_draft_args args = {SPECDEC_STRUCT(specdec_ngram_draft_args), .search = &search,
                                     .frequent = (int32_t)below(2), .num_draft = many,
                                     .out = memory(requests * many * 8)};
    spoil(&args, sizeof args, 0, 0);
    return specdec_ngram_draft(&args, threads);
  }
  double trust[3] = {0.5, 0.75, rarely(9) ? real() : 1};
  specdec_ngram_tree_args args = {SPECDEC_STRUCT(specdec_ngram_tree_args),
                                  .search = &search,
                                  .max_depth = below(9),
                                  .branches = between(1, 4),
                                  .max_nodes = many,
                                  .trust = trust,
                                  .trust_count = 3,
                                  .out_tokens = memory(requests * many * 8),
                                  .out_parents = memory(requests * many * 4),
                                  .out_scores = memory(requests * many * 4)};
  spoil(&args, sizeof args, 0, 0);
  return specdec_ngram_tree(&args, threads);
}

static uint8_t* kinds_of(int64_t n) {
  uint8_t* data = memory(n);
  for (int64_t i = 0; i < n; ++i) data[i] = (uint8_t)below(4);
  return data;
}

static specdec_result fuzz_budget(int32_t threads) {
  const int64_t nodes = below(30), max_rows = between(1, 20), requests = below(5), slots = below(5);
  const int64_t rows = nodes < max_rows ? nodes : max_rows;
  specdec_budget budget = {SPECDEC_STRUCT(specdec_budget), .costs = reals(max_rows + 1),
                           .max_rows = max_rows,           .credit = reals(1),
                           .idle_steps = ints(1, 9),       .promised = reals(slots * 9),
                           .kept = reals(slots * 9),       .slots = slots};
  if (rarely(4)) spoil(&budget, sizeof budget, 0, 0);
  if (rarely(2)) {
    const int64_t width = below(5);
    specdec_update_budget_args args = {SPECDEC_STRUCT(specdec_update_budget_args),
                                       .budget = &budget,
                                       .decay = 0.9,
                                       .allowance = 0.02,
                                       .max_credit = 4,
                                       .requests = requests,
                                       .nodes = nodes,
                                       .parents = ints(nodes, 3),
                                       .cu_nodes = ints(requests + 1, nodes),
                                       .proposals = kinds_of(nodes),
                                       .scores = floats(nodes),
                                       .path = ints(requests * width, 4),
                                       .width = width,
                                       .num_tokens = ints(requests, 4)};
    if (rarely(2)) args.request_slots = longs(requests, slots);
    const size_t bytes = offsetof(specdec_update_budget_args, proposals);
    spoil(&args, sizeof args, bytes, bytes + 8);
    return specdec_update_budget(&args, threads);
  }
  specdec_select_nodes_args args = {SPECDEC_STRUCT(specdec_select_nodes_args),
                                    .budget = &budget,
                                    .prior = 1,
                                    .patience = 5,
                                    .requests = requests,
                                    .nodes = nodes,
                                    .tokens = longs(nodes, 9),
                                    .parents = ints(nodes, 3),
                                    .cu_nodes = ints(requests + 1, nodes),
                                    .proposals = kinds_of(nodes),
                                    .scores = floats(nodes),
                                    .out_tokens = memory(rows * 8),
                                    .out_parents = memory(rows * 4),
                                    .out_cu_nodes = memory((requests + 1) * 4),
                                    .out_proposals = memory(rows),
                                    .out_scores = memory(rows * 4),
                                    .out_rows = memory(rows * 4)};
  if (rarely(2)) args.request_slots = longs(requests, slots);
  if (rarely(2)) args.weights = floats(requests);
  if (rarely(2)) args.draft_rows = ints(nodes, 99), args.out_draft_rows = memory(rows * 4);
  spoil(&args, sizeof args, offsetof(specdec_select_nodes_args, proposals), sizeof args);
  return specdec_select_nodes(&args, threads);
}

static specdec_result fuzz_enter(int32_t threads) {
  const int64_t requests = below(5), nodes = between(0, 9), narrow = below(2);
  if (rarely(2)) {
    const int64_t drafts = requests * below(6) + below(3), most = drafts, rows = drafts + requests;
    specdec_enter_chains_args args = {SPECDEC_STRUCT(specdec_enter_chains_args),
                                      .drafts = narrow ? (void*)ints(drafts, 300) : longs(drafts, 300),
                                      .drafts_are_int32 = (int32_t)narrow,
                                      .draft_count = drafts,
                                      .cu_drafts = longs(requests, most),
                                      .requests = requests,
                                      .out_tokens = memory(rows * 8),
                                      .out_parents = memory(rows * 4),
                                      .out_cu_nodes = memory((requests + 1) * 4)};
    spoil(&args, sizeof args, offsetof(specdec_enter_chains_args, drafts_are_int32),
          offsetof(specdec_enter_chains_args, drafts_are_int32) + 8);
    return specdec_enter_chains(&args, threads);
  }
  const int64_t columns = rarely(3) ? below(nodes + 1) : nodes, count = requests * nodes;
  specdec_enter_links_args args = {SPECDEC_STRUCT(specdec_enter_links_args),
                                   .tokens = rarely(3) ? NULL : longs(requests * columns, 300),
                                   .columns = columns,
                                   .next_token = narrow ? (void*)ints(count, nodes) : longs(count, nodes),
                                   .next_sibling = narrow ? (void*)ints(count, nodes) : longs(count, nodes),
                                   .links_are_int32 = (int32_t)narrow,
                                   .requests = requests,
                                   .nodes = nodes,
                                   .out_tokens = memory(count * 8),
                                   .out_parents = memory(count * 4),
                                   .out_first_child = memory(count * 4),
                                   .out_next_sibling = memory(count * 4)};
  spoil(&args, sizeof args, offsetof(specdec_enter_links_args, links_are_int32),
        offsetof(specdec_enter_links_args, links_are_int32) + 8);
  const specdec_result result = specdec_enter_links(&args, threads);
  for (int64_t i = 0; result == SPECDEC_OK && args.requests == requests && i < count; ++i)
    if (args.nodes == nodes && (args.out_parents[i] < -1 || args.out_parents[i] >= nodes)) abort();
  return result;
}

static specdec_head_rows head_rows(int64_t nodes, int64_t heads, int64_t size, specdec_dtype dtype) {
  return (specdec_head_rows){SPECDEC_STRUCT(specdec_head_rows), .data = scores(nodes * heads * size, dtype),
                             .dtype = dtype, .row_stride = heads * size, .head_stride = size};
}

static specdec_result fuzz_attention(int32_t threads) {
  const int64_t requests = below(3), nodes = requests * between(0, 20), heads = between(1, 3);
  const int64_t queries = heads * between(1, 5), head = between(1, 40), value_size = between(1, 40);
  const int64_t pages = between(1, 9), page_size = between(1, 20), table_width = below(12);
  const specdec_dtype dtype = (specdec_dtype)below(3), stored = (specdec_dtype)below(5);
  const int64_t keys = pages * page_size * heads * head, values = pages * page_size * heads * value_size;
  specdec_head_rows query = head_rows(nodes, queries, head, dtype);
  specdec_head_rows new_key = head_rows(nodes, heads, head, dtype);
  specdec_head_rows new_value = head_rows(nodes, heads, value_size, dtype);
  specdec_head_cache key = {SPECDEC_STRUCT(specdec_head_cache),
                            .data = scores(keys, stored),
                            .dtype = stored,
                            .page_stride = page_size * heads * head,
                            .slot_stride = heads * head,
                            .head_stride = head,
                            .scale = (float)real()};
  specdec_head_cache value = {SPECDEC_STRUCT(specdec_head_cache),
                              .data = scores(values, stored),
                              .dtype = stored,
                              .page_stride = page_size * heads * value_size,
                              .slot_stride = value_size,
                              .head_stride = page_size * value_size};
  specdec_attention_args args = {
      SPECDEC_STRUCT(specdec_attention_args),
      .query = &query,
      .key = &key,
      .value = &value,
      .nodes = nodes,
      .query_heads = queries,
      .heads = heads,
      .head = head,
      .value_size = value_size,
      .parents = tree(nodes),
      .cu_nodes = offsets(requests, nodes),
      .requests = requests,
      .block_table = ints(requests * table_width, pages),
      .table_width = table_width,
      .pages = pages,
      .page_size = page_size,
      .prefix_lens = ints(requests, 200),
      .max_prefix = below(300),
      .scale = 0.3f,
      .softcap = rarely(2) ? 0 : 5,
      .window = rarely(2) ? 0 : below(40),
      .deterministic = (int32_t)below(2),
      .out = memory(nodes * queries * value_size * (dtype == SPECDEC_FLOAT32 ? 4 : 2))};
  if (rarely(2)) args.new_key = &new_key, args.new_value = &new_value;
  if (rarely(2)) args.sinks = floats(queries);
  if (rarely(2)) args.out_lse = memory(nodes * queries * 4);
  if (rarely(2)) key.scales = floats(heads);
  spoil(&args, sizeof args, 0, 0);
  if (rarely(4)) spoil(&query, sizeof query, 16, 24);
  if (rarely(4)) spoil(&key, sizeof key, 8, 24);
  return specdec_tree_attention(&args, threads);
}

static specdec_result (*const functions[])(int32_t) = {
    fuzz_verify, fuzz_sample, fuzz_edit_logits, fuzz_count_tokens, fuzz_children, fuzz_ngram, fuzz_attention,
    fuzz_commit, fuzz_states, fuzz_windows,     fuzz_replay,       fuzz_enter,    fuzz_budget};
enum { KINDS = sizeof functions / sizeof *functions };

// Whether a result is one that a caller's arguments can have, with a message where it is an error.
static int expected(specdec_result result) {
  if (result < SPECDEC_OK || result > SPECDEC_ERROR_VALUE) return 0;
  return result == SPECDEC_OK || strncmp(specdec_error_message(), "specdec_", 8) == 0;
}

#ifdef SPECDEC_LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  state = 0, given = data, given_bytes = size;
  const int64_t kind = below(KINDS), threads = rarely(30) ? between(-1, 0) : 1;
  if (!expected(functions[kind]((int32_t)threads))) abort();
  free_memory();
  return 0;
}
#else
int main(int count, char** arguments) {
  if (count < 3 || count > 5) return 2;
  FILE* file = count > 3 ? fopen(arguments[3], "wb") : NULL;  // of what calls leave in memory
  const long fixed = count > 4 ? strtol(arguments[4], NULL, 10) : 0;
  long done = 0, calls = strtol(arguments[2], NULL, 10);
  for (long call = 0; call < calls; ++call) {
    state = strtoull(arguments[1], NULL, 10) * 1000003u + (uint64_t)call;
    int64_t threads = rarely(30) ? between(-1, 0) : between(1, 3);
    if (fixed && threads > 0) threads = fixed;
    const specdec_result result = functions[call % KINDS]((int32_t)threads);
    if (!expected(result)) {
      fprintf(stderr, "call %ld: %s\n", call, specdec_error_message());
      return 1;
    }
    done += result == SPECDEC_OK;
    if (file) keep(file, call, result);
    free_memory();
  }
  if (file && fclose(file)) return 2;
  return done * 4 < calls;  // most calls do something
}
#endif
