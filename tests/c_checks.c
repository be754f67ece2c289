// SPDX-License-Identifier: Apache-2.0
// Calls that must be refused, each with a result and a message, which is printed; and calls at once.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "specdec.h"

#define REQUIRE(condition)                                                                             \
  do {                                                                                                 \
    if (!(condition)) {                                                                                \
      fprintf(stderr, "line %d: %s; last error: %s\n", __LINE__, #condition, specdec_error_message()); \
      exit(1);                                                                                         \
    }                                                                                                  \
  } while (0)

enum { VOCAB = 8, NODES = 3 };

static const float kLogits[NODES * VOCAB] = {0, 1, 2, 9, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1, 2, 0, 9};
static const int64_t kTokens[NODES] = {-1, 3, 4}, kSeeds[NODES] = {1, 1, 1}, kPositions[NODES] = {0, 1, 2};
static const int32_t kParents[NODES] = {-1, 0, 1}, kOffsets[2] = {0, NODES};
static const uint8_t kProposals[NODES] = {0, 0, 0};

typedef struct {
  specdec_rows target, draft;
  specdec_sampling sampling;
  specdec_verify_args args;
  int64_t tokens[NODES];
  int32_t num_tokens, num_accepted, path[NODES], status;
} Case;

static void set_up(Case* c) {
  memset(c, 0, sizeof *c);
  c->target = (specdec_rows){SPECDEC_STRUCT(specdec_rows), .data = kLogits, .count = NODES, .size = VOCAB,
                             .row_stride = VOCAB};
  c->draft = c->target;
  c->sampling = (specdec_sampling){SPECDEC_STRUCT(specdec_sampling), .top_p = 1};
  c->args = (specdec_verify_args){SPECDEC_STRUCT(specdec_verify_args),
                                  .target = &c->target,
                                  .requests = 1,
                                  .nodes = NODES,
                                  .tokens = kTokens,
                                  .parents = kParents,
                                  .cu_nodes = kOffsets,
                                  .proposals = kProposals,
                                  .sampling = &c->sampling,
                                  .rule = SPECDEC_MATCH,
                                  .seeds = kSeeds,
                                  .positions = kPositions,
                                  .width = NODES,
                                  .out_tokens = c->tokens,
                                  .out_num_tokens = &c->num_tokens,
                                  .out_num_accepted = &c->num_accepted,
                                  .out_path = c->path,
                                  .out_status = &c->status};
}

// The call is refused with `result`, leaves its outputs alone, and says why.
static void refused(Case* c, specdec_result result) {
  c->status = 77;
  const specdec_result got = specdec_verify(&c->args, 1);
  REQUIRE(got == result);
  REQUIRE(c->status == 77);
  puts(specdec_error_message());
  set_up(c);
}

static void check_structs(Case* c) {
  c->args.struct_size = 0, refused(c, SPECDEC_ERROR_STRUCT);
  c->args.struct_size -= 1, refused(c, SPECDEC_ERROR_STRUCT);
  c->args.struct_size = UINT32_MAX, refused(c, SPECDEC_ERROR_STRUCT);
  c->args.version = 0, refused(c, SPECDEC_ERROR_STRUCT);
  c->args.version = SPECDEC_ABI_VERSION + 1, refused(c, SPECDEC_ERROR_STRUCT);
  c->target.struct_size = 8, refused(c, SPECDEC_ERROR_STRUCT);
  c->sampling.version = 9, refused(c, SPECDEC_ERROR_STRUCT);
  // A caller of a later version: taken while it asks for nothing that is not known here.
  struct {
    specdec_rows rows;
    int64_t more;
  } later = {c->target, 0};
  later.rows.struct_size = sizeof later;
  c->args.target = &later.rows;
  REQUIRE(specdec_verify(&c->args, 1) == SPECDEC_OK);
  later.more = 1, refused(c, SPECDEC_ERROR_STRUCT);
}

static void check_nulls(Case* c) {
  REQUIRE(specdec_verify(NULL, 1) == SPECDEC_ERROR_NULL);
  puts(specdec_error_message());
  c->args.target = NULL, refused(c, SPECDEC_ERROR_NULL);
  c->target.data = NULL, refused(c, SPECDEC_ERROR_NULL);
  c->args.tokens = NULL, refused(c, SPECDEC_ERROR_NULL);
  c->args.cu_nodes = NULL, refused(c, SPECDEC_ERROR_NULL);
  c->args.first_child = kParents, refused(c, SPECDEC_ERROR_NULL);  // without next_sibling
  c->args.draft = &c->draft, c->args.draft_ids = kTokens, refused(c, SPECDEC_ERROR_NULL);
  c->args.rule = SPECDEC_LENIENT, c->args.rule_value_count = 1, refused(c, SPECDEC_ERROR_NULL);
  c->args.out_status = NULL;
  REQUIRE(specdec_verify(&c->args, 1) == SPECDEC_ERROR_NULL);
  puts(specdec_error_message());
  set_up(c);
  c->args = (specdec_verify_args){SPECDEC_STRUCT(specdec_verify_args), .target = &c->target, .width = 1};
  c->args.cu_nodes = kOffsets;
  REQUIRE(specdec_verify(&c->args, 1) == SPECDEC_OK);  // no requests, no memory
  set_up(c);
}

static void check_values(Case* c) {
  c->args.requests = -1, refused(c, SPECDEC_ERROR_VALUE);
  c->args.nodes = NODES + 1, refused(c, SPECDEC_ERROR_VALUE);
  c->args.width = 0, refused(c, SPECDEC_ERROR_VALUE);
  c->args.width = INT64_MAX, refused(c, SPECDEC_ERROR_VALUE);
  c->args.rule = 99, refused(c, SPECDEC_ERROR_VALUE);
  c->args.rule = SPECDEC_TYPICAL, refused(c, SPECDEC_ERROR_VALUE);  // its values are missing
  c->args.tokens = (const int64_t*)((const char*)kTokens + 4), refused(c, SPECDEC_ERROR_VALUE);
  c->target.size = -5, refused(c, SPECDEC_ERROR_VALUE);
  c->target.dtype = SPECDEC_INT8, refused(c, SPECDEC_ERROR_VALUE);
  c->target.row_stride = -1, refused(c, SPECDEC_ERROR_VALUE);
  c->target.row_stride = INT64_MAX / 2, refused(c, SPECDEC_ERROR_VALUE);
  c->sampling.temperature = 0.0 / 0.0 * c->sampling.top_p, refused(c, SPECDEC_ERROR_VALUE);
  c->sampling.min_p_last = 2, refused(c, SPECDEC_ERROR_VALUE);
  const double values[2] = {0.5, 1.5};
  c->args.rule = SPECDEC_LENIENT, c->args.rule_values = values, c->args.rule_value_count = 1;
  refused(c, SPECDEC_ERROR_VALUE);
  c->args.rule = SPECDEC_THRESHOLD, c->args.rule_values = values, c->args.rule_value_count = 2;
  refused(c, SPECDEC_ERROR_VALUE);
  c->args.rule = SPECDEC_ENSEMBLE, c->args.rule_values = values + 1, c->args.rule_value_count = 1;
  refused(c, SPECDEC_ERROR_VALUE);
  const int32_t counts[] = {0, -1, SPECDEC_MAX_THREADS + 1};
  for (int i = 0; i < 3; ++i) {
    REQUIRE(specdec_verify(&c->args, counts[i]) == SPECDEC_ERROR_VALUE);
    puts(specdec_error_message());
  }
}

// What is reported of tokens is checked like the rest.
static void check_reports(Case* c) {
  int32_t ranks[NODES], counts[NODES];
  float mass[NODES];
  uint32_t bits[NODES];
  int64_t ids[1], offsets[NODES + 1];
  specdec_logprobs report = {SPECDEC_STRUCT(specdec_logprobs), .top = 21, .out_ranks = ranks};
  c->args.logprobs = &report, refused(c, SPECDEC_ERROR_VALUE);
  report.top = 1, c->args.logprobs = &report, refused(c, SPECDEC_ERROR_NULL);
  report.top = 0, report.kind = (specdec_law)3, c->args.logprobs = &report, refused(c, SPECDEC_ERROR_VALUE);
  report.kind = SPECDEC_LAW_RAW, report.struct_size = 4, c->args.logprobs = &report;
  refused(c, SPECDEC_ERROR_STRUCT);
  specdec_masks left = {SPECDEC_STRUCT(specdec_masks), .out_bits = bits, .out_ids = ids};
  left.out_counts = counts, left.out_mass = mass, left.capacity = 1;
  c->args.masks = &left, refused(c, SPECDEC_ERROR_VALUE);
  left.out_bits = NULL, c->args.masks = &left, refused(c, SPECDEC_ERROR_NULL);  // without offsets
  left.out_offsets = offsets, c->args.masks = &left;
  c->sampling.temperature = 1;
  REQUIRE(specdec_verify(&c->args, 1) == SPECDEC_OK);
  REQUIRE(c->status == SPECDEC_STATUS_OVERFLOW && ids[0] == 0 && offsets[1] == counts[0]);
  ids[0] = -1, left.out_mass = NULL;  // which is not asked for
  REQUIRE(specdec_verify(&c->args, 1) == SPECDEC_OK && ids[0] == 0 && mass[0] == 1);
  set_up(c);
}

// The structs of an array have their size beside it, and are checked one by one.
static void check_caches(void) {
  char memory[64] = {0};
  int32_t path[1] = {0}, table[1] = {0}, prefix[1] = {0}, length[1] = {77}, pages[1];
  const int32_t one[2] = {0, 1};
  const specdec_paths paths = {
      SPECDEC_STRUCT(specdec_paths), .nodes = path, .width = 1, .cu_nodes = one, .rows = 1, .requests = 1};
  specdec_cache cache = {memory, 1, 64, 8, 1, 8, 8};
  specdec_commit_args args = {SPECDEC_STRUCT(specdec_commit_args),
                              .caches = &cache,
                              .cache_count = 1,
                              .cache_struct_size = 8,
                              .paths = &paths,
                              .block_table = table,
                              .table_width = 1,
                              .prefix_lens = prefix,
                              .page_size = 8,
                              .out_lengths = length,
                              .out_pages_kept = pages};
  REQUIRE(specdec_commit_kv(&args, 1) == SPECDEC_ERROR_STRUCT);
  puts(specdec_error_message());
  args.cache_struct_size = sizeof cache, cache.slot_stride = -8;
  REQUIRE(specdec_commit_kv(&args, 1) == SPECDEC_ERROR_VALUE);
  puts(specdec_error_message());
  REQUIRE(length[0] == 77);
  cache.slot_stride = 8;
  REQUIRE(specdec_commit_kv(&args, 1) == SPECDEC_OK && length[0] == 1 && pages[0] == 1);
}

// Chains and links of both widths, and what is refused of them.
static void check_trees(void) {
  const int32_t drafts[3] = {7, 8, 9}, sums[2] = {2, 3};
  int64_t tokens[5];
  int32_t parents[5], offsets[3];
  specdec_enter_chains_args chains = {SPECDEC_STRUCT(specdec_enter_chains_args),
                                      .drafts = drafts,
                                      .drafts_are_int32 = 1,
                                      .draft_count = 3,
                                      .cu_drafts = sums,
                                      .cu_drafts_are_int32 = 1,
                                      .requests = 2,
                                      .out_tokens = tokens,
                                      .out_parents = parents,
                                      .out_cu_nodes = offsets};
  REQUIRE(specdec_enter_chains(&chains, 1) == SPECDEC_OK);
  const int64_t expected[5] = {-1, 7, 8, -1, 9};
  REQUIRE(memcmp(tokens, expected, sizeof tokens) == 0 && offsets[1] == 3 && offsets[2] == 5);
  REQUIRE(parents[2] == 1 && parents[3] == -1 && parents[4] == 0);
  chains.cu_drafts_are_int32 = 2;
  REQUIRE(specdec_enter_chains(&chains, 1) == SPECDEC_ERROR_VALUE);
  puts(specdec_error_message());
  const int64_t first[3] = {1, -1, -1}, after[3] = {-1, 2, -1};
  int32_t children[3], siblings[3];
  specdec_enter_links_args links = {SPECDEC_STRUCT(specdec_enter_links_args),
                                    .next_token = first,
                                    .next_sibling = after,
                                    .requests = 1,
                                    .nodes = 3,
                                    .out_parents = parents,
                                    .out_first_child = children,
                                    .out_next_sibling = siblings};
  REQUIRE(specdec_enter_links(&links, 1) == SPECDEC_OK);
  REQUIRE(parents[0] == -1 && parents[1] == 0 && parents[2] == 0 && children[0] == 1 && siblings[1] == 2);
  links.columns = 4;
  REQUIRE(specdec_enter_links(&links, 1) == SPECDEC_ERROR_VALUE);
  puts(specdec_error_message());
  links.columns = 0, links.out_parents = NULL;
  REQUIRE(specdec_enter_links(&links, 1) == SPECDEC_ERROR_NULL);
  puts(specdec_error_message());
}

// Every other call is wrong in this thread's own way.
static void* calls(void* number) {
  const int64_t mine = *(const int64_t*)number;
  char expected[100];
  snprintf(expected, sizeof expected, "specdec_verify: width must be in [1, 2147483647], got %d", -(int)mine);
  Case c;
  for (int i = 0; i < 2000; ++i) {
    set_up(&c);
    REQUIRE(specdec_verify(&c.args, 3) == SPECDEC_OK);
    REQUIRE(c.num_accepted == 2 && c.tokens[0] == 3 && c.tokens[1] == 4 && c.tokens[2] == 0);
    c.args.width = -mine;
    REQUIRE(specdec_verify(&c.args, 3) == SPECDEC_ERROR_VALUE);
    REQUIRE(strcmp(specdec_error_message(), expected) == 0);
  }
  return NULL;
}

int main(void) {
  REQUIRE(specdec_error_message()[0] == 0);
  Case c;
  set_up(&c);
  check_structs(&c);
  check_nulls(&c);
  check_values(&c);
  check_reports(&c);
  check_caches();
  check_trees();
  pthread_t threads[4];
  int64_t numbers[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; ++i) REQUIRE(pthread_create(&threads[i], NULL, calls, &numbers[i]) == 0);
  for (int i = 0; i < 4; ++i) pthread_join(threads[i], NULL);
  return 0;
}
