// SPDX-License-Identifier: Apache-2.0
// The verification kernels of speculative decoding on the CPU, for every language that can call C. How to
// build and link the library, and what a call promises, is in docs/c.md.
//
// Arrays are dense and row-major unless they have a stride. Strides count elements, and bytes where a
// comment says so. R = nodes of all trees of a batch, B = requests, V = tokens of the vocabulary.
#ifndef SPECDEC_H
#define SPECDEC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define SPECDEC_ENUM(name) enum name : int32_t
#else
#define SPECDEC_ENUM(name) \
  typedef int32_t name;    \
  enum
#endif

#if defined(__GNUC__)
#define SPECDEC_API __attribute__((visibility("default")))
#else
#define SPECDEC_API
#endif

// Every struct begins with its size and this number. A library takes structs of callers that were compiled
// with an older header; a newer one's as long as the fields that it does not know are zero.
#define SPECDEC_ABI_VERSION 1
// In an initialiser: `specdec_rows rows = {SPECDEC_STRUCT(specdec_rows), .data = logits, ...};`
#define SPECDEC_STRUCT(type) .struct_size = sizeof(type), .version = SPECDEC_ABI_VERSION

#define SPECDEC_MAX_THREADS 4096

// What a function returns. After anything but SPECDEC_OK no output was written, except after
// SPECDEC_ERROR_MEMORY and SPECDEC_ERROR_INTERNAL, where outputs may hold anything.
SPECDEC_ENUM(specdec_result){
    SPECDEC_OK = 0,
    SPECDEC_ERROR_STRUCT = 1,    // a struct has a size or version that the library does not know
    SPECDEC_ERROR_NULL = 2,      // a pointer is null
    SPECDEC_ERROR_VALUE = 3,     // a size, stride, option or alignment
    SPECDEC_ERROR_MEMORY = 4,    // none is left
    SPECDEC_ERROR_INTERNAL = 5,  // a bug of the library
};

// What was wrong with the last call of this thread that did not return SPECDEC_OK: function, argument, rule
// and what came. Valid until the next such call of this thread; "" before any.
SPECDEC_API const char* specdec_error_message(void);

SPECDEC_API const char* specdec_version(void);          // of the package, as "0.1.0"
SPECDEC_API uint32_t specdec_abi_version(void);         // the newest that the library takes
SPECDEC_API const char* specdec_instruction_set(void);  // "avx512", "avx2", "neon" or "baseline"

// The last two in caches only: two's complement, and E4M3 without infinities.
SPECDEC_ENUM(specdec_dtype){
    SPECDEC_FLOAT32 = 0, SPECDEC_BFLOAT16 = 1,      SPECDEC_FLOAT16 = 2,
    SPECDEC_INT8 = 3,    SPECDEC_FLOAT8_E4M3FN = 4,
};

// A matrix [count, size] of scores. With `group` > 0, row r lies at (r / group) * group_stride + (r % group)
// * row_stride.
typedef struct specdec_rows {
  uint32_t struct_size, version;
  const void* data;
  specdec_dtype dtype;  // of 32 or 16 bits
  int64_t count, size;
  int64_t group, group_stride, row_stride;
} specdec_rows;

// How logits become a law: temperature, min-p, top-k, top-p, in this order. Temperature 0 is greedy; top_k 0,
// top_p 1 and min_p 0 are off. An array, where one is given, has a value for each request and replaces the
// number.
typedef struct specdec_sampling {
  uint32_t struct_size, version;
  double temperature, top_k, top_p, min_p;
  const double *temperatures, *top_ks, *top_ps, *min_ps;  // [B] or null
  int32_t min_p_last;                                     // 1: min-p cuts after top-k and top-p
} specdec_sampling;

// ---- Verification ----

// How a drafted token came to be, given its earlier siblings. Other values count as a point.
enum {
  SPECDEC_POINT = 0,                // chosen
  SPECDEC_INDEPENDENT = 1,          // sampled from the draft's law at its parent
  SPECDEC_WITHOUT_REPLACEMENT = 2,  // the same, without earlier such siblings and all points
};

// Bits of a request's status.
enum {
  SPECDEC_STATUS_NAN = 1,         // a visited row has a NaN
  SPECDEC_STATUS_EMPTY = 2,       // a visited row has nothing left
  SPECDEC_STATUS_IMPOSSIBLE = 4,  // a drafted token cannot have been drawn as declared
  SPECDEC_STATUS_OVERFLOW = 8,    // ids of a sampling mask did not fit, or a slot's counts: no penalties then
};

// Why a request ended, in bits; 0 = it goes on, or had ended before.
enum {
  SPECDEC_FINISH_STOP = 1,     // its last emitted token is one of its stop tokens
  SPECDEC_FINISH_LENGTH = 2,   // no new token is left to it
  SPECDEC_FINISH_CONTEXT = 4,  // its context is full
  SPECDEC_FINISH_DRAFTED = 8,  // its last emitted token was a drafted one; this alone does not end it
};

// Changes of the scores of a row of request b, before bitmask and temperature, in float32. A node's path is
// its token and those of its ancestors but the root. They are made in this order:
// 1. Repetition, of a token in prompt, output or path: x / r if x > 0, otherwise x * r.
// 2. Frequency: x - f * count. The count is that of output and path, and of the prompt if told so.
// 3. Presence, if count > 0: x - p.
// 4. Biases, added up: x + bias.
// 5. Bans: -inf. Of a bad word the last token is banned where the others were just written.
// 6. A token that is forced after a node of depth d < forced_count: 0, and -inf for all others.
// Tokens outside [0, V) are none. What is not finite, or a repetition that is not above 0, is off.
typedef struct specdec_edits {
  uint32_t struct_size, version;
  // Counts, or null: then repetition, frequency and presence are off. A slot has `count_sizes` entries, their
  // tokens ascending; more than `capacity` = overflowed, and its requests' penalties are off.
  const int32_t *count_tokens, *count_prompt, *count_output;  // [slots, capacity]
  const int32_t* count_sizes;                                 // [slots]
  const int64_t* recent;  // [slots, recent_width] or null: the last tokens before the path, -1 = none
  int64_t slots, capacity, recent_width;
  const int64_t* request_slots;  // [B] or null: b; outside [0, slots) = nothing counted but the path
  double repetition, frequency, presence;
  const float *repetitions, *frequencies, *presences;  // [B] or null: in the place of the number
  int32_t penalize_prompt;                             // 1: frequency and presence count the prompt
  const int64_t* bias_tokens;                          // [B, bias_count]
  const float* bias_values;                            // [B, bias_count]
  int64_t bias_count;
  const int64_t* banned_tokens;  // [B, banned_count]
  int64_t banned_count;
  const int32_t* banned_until;  // [B] or null: where the depth of the node is below it
  const int64_t* bad_words;     // [B, bad_word_count, bad_word_length], -1 on the left of shorter ones
  int64_t bad_word_count, bad_word_length;
  const int64_t* forced_tokens;  // [B, forced_count]
  int64_t forced_count;
} specdec_edits;

SPECDEC_ENUM(specdec_rule){
    SPECDEC_MATCH = 0,      // lossless; the tokens that specdec_sample draws
    SPECDEC_TOKEN = 1,      // lossless
    SPECDEC_TRAVERSAL = 2,  // lossless; accepts the most
    // Not lossless. rule_values:
    SPECDEC_TYPICAL = 3,    // epsilon, delta
    SPECDEC_RELAXED = 4,    // top_k, delta
    SPECDEC_LENIENT = 5,    // factor
    SPECDEC_SYNTHETIC = 6,  // rates by depth, the last for all below
    SPECDEC_DEFERRED = 7,   // entropy, window
    SPECDEC_THRESHOLD = 8,  // single, acc
    SPECDEC_ENSEMBLE = 9,   // weight
};

// What the rows of `draft` hold.
SPECDEC_ENUM(specdec_draft_form){
    SPECDEC_DRAFT_LOGITS = 0,    // logits, of which `draft_sampling` makes the law
    SPECDEC_DRAFT_LOGPROBS = 1,  // the logarithms of the law itself
    SPECDEC_DRAFT_PROBS = 2,     // the law itself
};

// The law that log-probabilities are of.
SPECDEC_ENUM(specdec_law){
    SPECDEC_LAW_PROCESSED = 0,    // after bitmask, temperature and cuts
    SPECDEC_LAW_RAW = 1,          // of the row as it was given
    SPECDEC_LAW_TEMPERATURE = 2,  // after temperature alone; at temperature 0 as raw
};

// What is reported of every emitted token, at the positions of out_tokens. Beyond: nan, token -1, rank 0.
// `width` is that of the call, and 1 of specdec_sample.
typedef struct specdec_logprobs {
  uint32_t struct_size, version;
  specdec_law kind;  // of out_logprobs, too
  int64_t top;       // likeliest tokens of each position, at most 20
  const int64_t* chosen;
  int64_t chosen_count;        // of `chosen` [B, chosen_count]; outside [0, V) = none
  float* out_top_logprobs;     // [B, width, top], descending
  int64_t* out_top_tokens;     // [B, width, top]; among equals the lowest comes first
  int32_t* out_ranks;          // [B, width], 1 + how many tokens are likelier than the emitted one
  float* out_chosen_logprobs;  // [B, width, chosen_count]
} specdec_logprobs;

// The tokens that bitmask and cuts left at every position: either bits, or ids with their offsets.
typedef struct specdec_masks {
  uint32_t struct_size, version;
  uint32_t* out_bits;    // [B, width, ceil(V / 32)] or null: bit t % 32 of word t / 32 = token t was left
  int64_t* out_ids;      // [capacity] or null: ascending at each position, -1 after the last
  int64_t capacity;      // ids beyond it are left out, and set SPECDEC_STATUS_OVERFLOW
  int64_t* out_offsets;  // [B * width + 1], with out_ids: where the ids of each position begin
  int32_t* out_counts;   // [B, width], right whatever the capacity is
  float* out_mass;       // [B, width] or null: how much of the law after bitmask and temperature was left
} specdec_masks;

typedef struct specdec_verify_args {
  uint32_t struct_size, version;
  // The target's laws: node i has row i; or the row that target_rows says, -1 = none; or, of the nodes of
  // request b, row i - b, and the last one none. A node without a row is kept only if bonus_tokens follow it;
  // else, if the rule accepts it, its token is the next token.
  const specdec_rows* target;  // [rows, V]
  const int32_t* target_rows;  // [R] or null
  int32_t rows_end_early;      // 1: the last
  // The trees: request b has the nodes [cu_nodes[b], cu_nodes[b + 1]), its root first, parents before
  // children.
  int64_t requests, nodes;      // B, R
  const int64_t* tokens;        // [R], -1 = none
  const int32_t* parents;       // [R], index within the request, of a root -1
  const int32_t* cu_nodes;      // [B + 1]
  const uint8_t* proposals;     // [R]
  const int32_t* first_child;   // [R], with next_sibling, index within the request, -1 = none; both null:
  const int32_t* next_sibling;  // siblings in the order of their indices
  // The draft's laws; null = every drafted token is a point.
  const specdec_rows* draft;  // node i has row i; or, of a request's chain of draft_chain, row i of its own
  const int32_t* draft_rows;  // [R] or null: the row of each node, -1 = none
  int64_t draft_chain;        // 0 = none
  const int64_t* draft_ids;   // [draft size] or null: the token of each column
  const int32_t* draft_columns;  // [V], with draft_ids: the column of each token, -1 = none
  specdec_draft_form draft_form;
  const specdec_sampling* sampling;        // null: temperature 1, nothing cut
  const specdec_sampling* draft_sampling;  // null: as `sampling`
  specdec_rule rule;
  const double* rule_values;
  int64_t rule_value_count;
  const int64_t* seeds;      // [B]
  const int64_t* positions;  // [B], in its sequence, of the first new token
  const uint32_t* bitmask;   // [R, bitmask_stride] or null: bit t % 32 of word t / 32 = token t is allowed
  int64_t bitmask_stride;
  // [B] or null: the token after a chain's last node, drawn by the caller; int64_t, or int32_t.
  const void* bonus_tokens;
  int32_t bonus_tokens_are_int32;
  const specdec_edits* edits;  // of the target's rows; null = none
  // Where requests end. A path is cut at the first stop token, and where nothing is left; this token is the
  // last one emitted. All may be null. Those that are not const are changed.
  const int64_t* stop_tokens;  // [B, stop_count], -1 = none
  int64_t stop_count;
  int32_t* new_tokens_left;  // [B], how many more tokens the request may emit
  int32_t* context_left;     // [B], how many more its context can hold
  uint8_t* finished;         // [B], not 0 = it has ended, and counts as a request without nodes
  int64_t width;             // 1 + depth of the deepest node that may be accepted
  // Outputs.
  void* out_tokens;                  // [B, width], int64_t: accepted tokens, the next token, then -1
  int32_t out_tokens_are_int32;      // 1: int32_t
  int32_t* out_num_tokens;           // [B]
  int32_t* out_num_accepted;         // [B]
  int32_t* out_path;                 // [B, width]: 0, accepted nodes, then -1
  float* out_logprobs;               // [B, width] or null: of out_tokens under the target's processed law, or
                                     // the kind that `logprobs` names
  int32_t* out_status;               // [B]
  int32_t* out_finish;               // [B] or null: why requests end
  const specdec_logprobs* logprobs;  // or null
  const specdec_masks* masks;        // or null
  // [R] or null, for tests: what each tested node's coin was compared with, the mass that a rejection left.
  double *trace_thresholds, *trace_masses;
} specdec_verify_args;

SPECDEC_API specdec_result specdec_verify(const specdec_verify_args* args, int32_t threads);

typedef struct specdec_sample_args {
  uint32_t struct_size, version;
  const specdec_rows* logits;        // [B, V]
  const specdec_sampling* sampling;  // null: temperature 1, nothing cut
  const int64_t *seeds, *positions;  // [B]
  const uint32_t* bitmask;           // [B, bitmask_stride] or null
  int64_t bitmask_stride;
  const specdec_edits* edits;        // null = none
  int64_t* out_tokens;               // [B]
  float* out_logprobs;               // [B] or null
  const specdec_logprobs* logprobs;  // or null
} specdec_sample_args;

SPECDEC_API specdec_result specdec_sample(const specdec_sample_args* args, int32_t threads);

typedef struct specdec_edit_logits_args {
  uint32_t struct_size, version;
  const specdec_rows* logits;  // [B, V]; with a tree [rows, V]. The rows are changed.
  int64_t requests, nodes;     // B, R
  const int64_t* tokens;       // [R], with parents and cu_nodes; all null: no request has a path
  const int32_t* parents;      // [R]
  const int32_t* cu_nodes;     // [B + 1]
  const int32_t* target_rows;  // [R] or null: the row of each node, -1 = none; no two share one
  const specdec_edits* edits;
} specdec_edit_logits_args;

SPECDEC_API specdec_result specdec_edit_logits(const specdec_edit_logits_args* args, int32_t threads);

// Enters what a step emitted into the counts, as output, and into the last tokens. A slot whose new tokens do
// not fit gets the size capacity + 1, and keeps its entries.
typedef struct specdec_count_tokens_args {
  uint32_t struct_size, version;
  int64_t requests, width, vocab;
  const void* tokens;  // [B, width], int64_t, or int32_t; outside [0, vocab) = none
  int32_t tokens_are_int32;
  const int32_t* num_tokens;     // [B] or null: width
  const int64_t* request_slots;  // [B], distinct, or null: b; outside [0, slots) = none
  int64_t slots, capacity, recent_width;
  int32_t *count_tokens, *count_prompt, *count_output;  // [slots, capacity]
  int32_t* count_sizes;                                 // [slots]
  int64_t* recent;                                      // [slots, recent_width]
} specdec_count_tokens_args;

SPECDEC_API specdec_result specdec_count_tokens(const specdec_count_tokens_args* args, int32_t threads);

// ---- Drafting ----

SPECDEC_ENUM(specdec_method){
    SPECDEC_CHILDREN_INDEPENDENT = 0,
    SPECDEC_CHILDREN_WITHOUT_REPLACEMENT = 1,
    SPECDEC_CHILDREN_TOP_K = 2,
    SPECDEC_CHILDREN_HYBRID = 3,  // one sampled outside the k - 1 likeliest, then these
};

// What noise is for, and so which it is. Drafts share the target's own only on purpose.
SPECDEC_ENUM(specdec_purpose){
    SPECDEC_PURPOSE_NEXT = 0,
    SPECDEC_PURPOSE_RESIDUAL = 1,
    SPECDEC_PURPOSE_ACCEPT = 2,
    SPECDEC_PURPOSE_DRAFT = 3,
};

typedef struct specdec_children_args {
  uint32_t struct_size, version;
  const specdec_rows* logits;  // [N, V], of N parents
  int64_t k;                   // children of each, at most 256
  specdec_method method;
  specdec_purpose purpose;
  const specdec_sampling* sampling;  // of parents, not of requests; null: temperature 1, nothing cut
  const int64_t *seeds, *positions;  // [N]
  const int64_t* nodes;              // [N], of the parent within its request
  int64_t* out_tokens;               // [N, k], -1 = none
  float* out_scores;                 // [N, k], log-probabilities
} specdec_children_args;

SPECDEC_API specdec_result specdec_sample_children(const specdec_children_args* args, int32_t threads);

// Texts, and which n-grams of theirs to look up: those that a text ends with, the longest first.
typedef struct specdec_ngram_search {
  uint32_t struct_size, version;
  const int64_t* tokens;   // [B, width]
  const int64_t* lengths;  // [B]
  int64_t requests, width;
  int64_t min_ngram, max_ngram;
  int32_t cyclic;  // 1: what reaches the end of the text goes on with itself
} specdec_ngram_search;

typedef struct specdec_ngram_draft_args {
  uint32_t struct_size, version;
  const specdec_ngram_search* search;
  int32_t frequent;  // 1: the most frequent continuation, 0: the latest
  int64_t num_draft;
  int64_t* out;  // [B, num_draft], -1 beyond the end
} specdec_ngram_draft_args;

SPECDEC_API specdec_result specdec_ngram_draft(const specdec_ngram_draft_args* args, int32_t threads);

typedef struct specdec_ngram_tree_args {
  uint32_t struct_size, version;
  const specdec_ngram_search* search;
  int64_t max_depth, branches, max_nodes;
  const double*
      trust;  // [trust_count], the chance that a match of n + 1 tokens goes on; the last for all longer
  int64_t trust_count;
  int64_t* out_tokens;   // [B, max_nodes], the root first, -1 beyond the end
  int32_t* out_parents;  // [B, max_nodes]
  float* out_scores;     // [B, max_nodes], log-probabilities
} specdec_ngram_tree_args;

SPECDEC_API specdec_result specdec_ngram_tree(const specdec_ngram_tree_args* args, int32_t threads);

// ---- How much to draft ----

// Costs, ledger and calibrations of a batch. A calibration has sums for 8 buckets of promises and one of
// draws.
typedef struct specdec_budget {
  uint32_t struct_size, version;
  const double* costs;  // [max_rows + 1], times of steps by rows
  int64_t max_rows;
  double* credit;       // [1], time that may be lost at present; negative: a debt
  int32_t* idle_steps;  // [1], steps since the last one that drafted
  double* promised;     // [slots, 9], decayed sums of tested promises
  double* kept;         // [slots, 9], and of accepted nodes
  int64_t slots;
} specdec_budget;

// Keeps the nodes of all trees that are expected to bring the most tokens per time, as trees without gaps.
// There are S = min(max_rows, R) rows of outputs.
typedef struct specdec_select_nodes_args {
  uint32_t struct_size, version;
  const specdec_budget* budget;  // which is not changed
  double prior;                  // weight of a promise at first
  int64_t patience;              // idle steps after which a trial is made
  int64_t requests, nodes;       // B <= max_rows, R
  const int64_t* tokens;         // [R], as of specdec_verify
  const int32_t* parents;        // [R]
  const int32_t* cu_nodes;       // [B + 1]
  const uint8_t* proposals;      // [R]
  const float* scores;           // [R], logarithms of chances; -inf: there is no node, at a root no request
  const int32_t* draft_rows;     // [R] or null
  const int64_t* request_slots;  // [B] or null: b; outside [0, slots) = a new request
  int64_t* out_tokens;           // [S], -1 beyond the end
  int32_t* out_parents;          // [S], -1 beyond the end
  int32_t* out_cu_nodes;         // [B + 1]
  uint8_t* out_proposals;        // [S]
  float* out_scores;             // [S], -inf beyond the end
  int32_t* out_rows;             // [S], where each row was, -1 beyond the end
  int32_t* out_draft_rows;       // [S], -1 beyond the end; with draft_rows
  const float* weights;          // [B] or null: 1; what a drafted token of each request is worth
} specdec_select_nodes_args;

SPECDEC_API specdec_result specdec_select_nodes(const specdec_select_nodes_args* args, int32_t threads);

// Learns from a step over trees that specdec_select_nodes kept.
typedef struct specdec_update_budget_args {
  uint32_t struct_size, version;
  const specdec_budget* budget;  // all but its costs is changed
  double decay;                  // of the sums per step
  double allowance;              // share of plain decoding's time that may be lost
  double max_credit;
  int64_t requests, nodes;   // B, S
  const int32_t* parents;    // [S]
  const int32_t* cu_nodes;   // [B + 1]
  const uint8_t* proposals;  // [S]
  const float* scores;       // [S]
  const int32_t* path;       // [B, width], as specdec_verify_args' out_path
  int64_t width;
  const int32_t* num_tokens;     // [B]
  const int64_t* request_slots;  // [B], distinct, or null: b; outside [0, slots) = none
} specdec_update_budget_args;

SPECDEC_API specdec_result specdec_update_budget(const specdec_update_budget_args* args, int32_t threads);

// ---- Trees from what engines keep ----

// Chains whose drafted tokens lie one after the other, without roots. Rows that no request owns, because sums
// are smaller than draft_count, have token -1.
typedef struct specdec_enter_chains_args {
  uint32_t struct_size, version;
  const void* drafts;  // [draft_count], int64_t, or int32_t
  int32_t drafts_are_int32;
  int64_t draft_count;
  const void* cu_drafts;  // [B], drafted tokens of requests 0 to b together; int64_t, or int32_t
  int32_t cu_drafts_are_int32;
  int64_t requests;
  int64_t* out_tokens;    // [draft_count + B], of roots -1
  int32_t* out_parents;   // [draft_count + B]
  int32_t* out_cu_nodes;  // [B + 1]
} specdec_enter_chains_args;

SPECDEC_API specdec_result specdec_enter_chains(const specdec_enter_chains_args* args, int32_t threads);

// Trees of `nodes` nodes each, the root first, that are given by links: the index of the first child, and of
// the next child of the same parent; others than those of nodes count as none.
typedef struct specdec_enter_links_args {
  uint32_t struct_size, version;
  // [B, columns], int64_t, or int32_t, of the last nodes; null: nothing is written to out_tokens.
  const void* tokens;
  int32_t tokens_are_int32;
  int64_t columns;
  const void *next_token, *next_sibling;  // [B, nodes], int64_t, or int32_t
  int32_t links_are_int32;
  int64_t requests, nodes;
  int64_t* out_tokens;       // [B, nodes]; of nodes without a column they stay
  int32_t* out_parents;      // [B, nodes], 0 of nodes that no link reaches
  int32_t* out_first_child;  // [B, nodes]
  int32_t* out_next_sibling;
} specdec_enter_links_args;

SPECDEC_API specdec_result specdec_enter_links(const specdec_enter_links_args* args, int32_t threads);

// ---- Attention ----

// [R, heads, size].
typedef struct specdec_head_rows {
  uint32_t struct_size, version;
  const void* data;
  specdec_dtype dtype;
  int64_t row_stride, head_stride;
} specdec_head_rows;

// A paged cache [pages, slots, heads, size], whichever of slots and heads comes first.
typedef struct specdec_head_cache {
  uint32_t struct_size, version;
  const void* data;
  specdec_dtype dtype;
  int64_t page_stride, slot_stride, head_stride;
  const float* scales;  // [heads] or null: what stored numbers are multiplied with
  float scale;          // where scales is null
} specdec_head_cache;

typedef struct specdec_attention_args {
  uint32_t struct_size, version;
  const specdec_head_rows* query;  // [R, query_heads, head]
  const specdec_head_rows *new_key,
      *new_value;  // [R, heads, ...]; both null: the trees' rows are in the cache
  const specdec_head_cache *key, *value;
  int64_t nodes, query_heads, heads;  // R; heads of the cache, which divide query_heads
  int64_t head, value_size;           // elements of a key, of a value
  const int32_t* parents;             // [R]
  const int32_t* cu_nodes;            // [B + 1]
  int64_t requests;
  const int32_t* block_table;  // [B, table_width], pages
  int64_t table_width, pages, page_size;
  const int32_t* prefix_lens;  // [B]
  int64_t max_prefix;          // no prefix counts for more
  float scale, softcap;        // of scores; softcap 0 = none
  int64_t window;              // positions seen, 0 = all
  const float* sinks;          // [query_heads] or null
  int32_t deterministic;       // 1: a row has the same bits whatever tree it is in
  void* out;                   // [R, query_heads, value_size] of the query's dtype
  float* out_lse;              // [R, query_heads] or null
} specdec_attention_args;

SPECDEC_API specdec_result specdec_tree_attention(const specdec_attention_args* args, int32_t threads);

// ---- Committing ----

// Kept paths, as specdec_verify leaves them.
typedef struct specdec_paths {
  uint32_t struct_size, version;
  const int32_t* nodes;  // [B, width], index within the request, -1 beyond the end
  int64_t width;
  const int32_t* cu_nodes;  // [B + 1]
  int64_t rows, requests;   // R, B
} specdec_paths;

// A paged cache, as bytes; strides in bytes. These two lie in arrays, with their size beside the array.
typedef struct specdec_cache {
  void* data;
  int64_t pages, page_stride, slot_stride, heads, head_stride, row_bytes;
} specdec_cache;

// Rows to write, one for each node, in place of those in the cache; strides in bytes.
typedef struct specdec_new_rows {
  const void* data;
  int64_t row_stride, head_stride;
} specdec_new_rows;

typedef struct specdec_commit_args {
  uint32_t struct_size, version;
  const specdec_cache* caches;       // [cache_count]
  const specdec_new_rows* new_rows;  // [cache_count]; null: node i of a request lies in slot prefix + i
  int64_t cache_count;
  uint32_t cache_struct_size, new_rows_struct_size;  // sizeof(specdec_cache), sizeof(specdec_new_rows)
  const specdec_paths* paths;
  const int32_t* block_table;  // [B, table_width], pages
  int64_t table_width;
  const int32_t* prefix_lens;  // [B]
  int64_t page_size;
  int32_t* out_lengths;     // [B]
  int32_t* out_pages_kept;  // [B]
} specdec_commit_args;

SPECDEC_API specdec_result specdec_commit_kv(const specdec_commit_args* args, int32_t threads);

// ---- States of recurrent layers ----
// A request's state, in the slot that `slots` says, becomes the one after its kept path. A slot outside a
// layer's range = none. Requests that share a slot take it one after the other. The structs of layers lie in
// arrays, with their size beside the array.

// [slots, ...]; strides in bytes.
typedef struct specdec_states {
  void* data;
  int64_t slots, slot_stride, row_bytes;
} specdec_states;

// [R, ...], the state after each node; strides in bytes.
typedef struct specdec_snapshots {
  const void* data;
  int64_t row_stride;
} specdec_snapshots;

typedef struct specdec_commit_state_args {
  uint32_t struct_size, version;
  const specdec_paths* paths;
  const int64_t* slots;  // [B]
  const specdec_states* states;
  const specdec_snapshots* snapshots;
  int64_t state_count, snapshot_count;  // the same: layers
  uint32_t state_struct_size, snapshot_struct_size;
} specdec_commit_state_args;

SPECDEC_API specdec_result specdec_commit_state(const specdec_commit_state_args* args, int32_t threads);

// The last inputs of convolutions, [slots, channels, taps], the latest last; strides in bytes.
typedef struct specdec_windows {
  void* data;
  int64_t slots, channels, taps, slot_stride, channel_stride, tap_stride, item_bytes;
} specdec_windows;

// [R, channels]; strides in bytes.
typedef struct specdec_window_inputs {
  const void* data;
  int64_t row_stride, channel_stride;
} specdec_window_inputs;

typedef struct specdec_replay_conv_args {
  uint32_t struct_size, version;
  const specdec_paths* paths;
  const int64_t* slots;  // [B]
  const specdec_windows* windows;
  const specdec_window_inputs* inputs;
  int64_t window_count, input_count;  // the same: layers
  uint32_t window_struct_size, input_struct_size;
} specdec_replay_conv_args;

SPECDEC_API specdec_result specdec_replay_conv(const specdec_replay_conv_args* args, int32_t threads);

// [slots, heads, rows, columns].
typedef struct specdec_matrices {
  void* data;
  specdec_dtype dtype;  // of 32 or 16 bits
  int64_t slots, heads, rows, columns, slot_stride, head_stride, row_stride, column_stride;
} specdec_matrices;

// [R, heads, size], or scalars, of size 1. Neighbouring heads of the states share one where there are fewer.
typedef struct specdec_node_inputs {
  const void* data;
  specdec_dtype dtype;  // of 32 or 16 bits
  int64_t heads, size, row_stride, head_stride;
} specdec_node_inputs;

typedef struct specdec_replay_args {
  uint32_t struct_size, version;
  const specdec_paths* paths;
  const int64_t* slots;  // [B]
  const specdec_matrices* states;
  const specdec_node_inputs* inputs;  // [layers, 4]
  int64_t state_count, input_count;   // layers, 4 * layers
  uint32_t state_struct_size, input_struct_size;
} specdec_replay_args;

// S = a S + k d^T with a = exp(log_decay), d = beta (v - a S^T k). Inputs: keys, values, log_decay, beta.
SPECDEC_API specdec_result specdec_replay_gated_delta(const specdec_replay_args* args, int32_t threads);
// S = exp(dt A) S + dt x B^T. Inputs: x, B, dt, and A, the same for every node.
SPECDEC_API specdec_result specdec_replay_mamba2(const specdec_replay_args* args, int32_t threads);

#ifdef __cplusplus
}
#endif

#endif  // SPECDEC_H
