// SPDX-License-Identifier: Apache-2.0
// Verifies the drafts of two requests by the C interface. Without Python:
//   make libspecdec && cc -Iinclude examples/verify.c -Lbuild -lspecdec -Wl,-rpath,build -o build/verify
#include <inttypes.h>
#include <stdio.h>

#include "specdec.h"

enum { REQUESTS = 2, DRAFTED = 3, NODES = REQUESTS * (DRAFTED + 1), VOCAB = 50, WIDTH = DRAFTED + 1 };

// Stands for a model: any scores do.
static void fill(float* rows, int count, int salt) {
  for (int i = 0; i < count * VOCAB; ++i) rows[i] = (float)((i * 37 + i / VOCAB * salt) % 61) / 16;
}

static specdec_rows rows_of(const float* data, int64_t count) {
  return (specdec_rows){SPECDEC_STRUCT(specdec_rows), .data = data,       .count = count, .size = VOCAB,
                        .dtype = SPECDEC_FLOAT32,     .row_stride = VOCAB};
}

int main(void) {
  static float target[NODES * VOCAB], draft[REQUESTS * DRAFTED * VOCAB];
  fill(target, NODES, 5);
  fill(draft, REQUESTS * DRAFTED, 9);
  // Each request: its last committed token, or -1, then what was drawn from the rows of `draft`.
  const int64_t tokens[NODES] = {-1, 23, 38, 3, -1, 9, 24, 39};
  const int32_t parents[NODES] = {-1, 0, 1, 2, -1, 0, 1, 2}, cu_nodes[REQUESTS + 1] = {0, 4, 8};
  const uint8_t proposals[NODES] = {0, SPECDEC_INDEPENDENT, SPECDEC_INDEPENDENT, SPECDEC_INDEPENDENT,
                                    0, SPECDEC_INDEPENDENT, SPECDEC_INDEPENDENT, SPECDEC_INDEPENDENT};
  const int64_t seeds[REQUESTS] = {7, 8}, positions[REQUESTS] = {100, 20};
  const specdec_rows target_rows = rows_of(target, NODES), draft_rows = rows_of(draft, REQUESTS * DRAFTED);
  const specdec_sampling sampling = {SPECDEC_STRUCT(specdec_sampling), .temperature = 0.8, .top_p = 0.95};

  int64_t out_tokens[REQUESTS * WIDTH];
  int32_t num_tokens[REQUESTS], num_accepted[REQUESTS], path[REQUESTS * WIDTH], status[REQUESTS];
  // clang-format off
  specdec_verify_args args = {
      SPECDEC_STRUCT(specdec_verify_args), .target = &target_rows, .requests = REQUESTS, .nodes = NODES,
      .tokens = tokens, .parents = parents, .cu_nodes = cu_nodes, .proposals = proposals,
      .draft = &draft_rows, .draft_chain = DRAFTED, .sampling = &sampling, .rule = SPECDEC_TRAVERSAL,
      .seeds = seeds, .positions = positions, .width = WIDTH, .out_tokens = out_tokens, .out_path = path,
      .out_num_tokens = num_tokens, .out_num_accepted = num_accepted, .out_status = status};
  // clang-format on
  if (specdec_verify(&args, 2) != SPECDEC_OK) return fprintf(stderr, "%s\n", specdec_error_message()), 1;

  for (int b = 0; b < REQUESTS; ++b) {
    printf("accepted %" PRId32 ", status %" PRId32 ":", num_accepted[b], status[b]);
    for (int i = 0; i < num_tokens[b]; ++i) printf(" %" PRId64, out_tokens[b * WIDTH + i]);
    printf("\n");
  }
  args.width = 0;  // what an error looks like
  if (specdec_verify(&args, 2) != SPECDEC_ERROR_VALUE) return 1;
  fprintf(stderr, "%s\n", specdec_error_message());
  return 0;
}
