// SPDX-License-Identifier: Apache-2.0
// `c_threads RULE NODES VOCAB`: how many threads the process has after a call of `specdec_verify` that may
// have two. The library starts its threads when they are first needed.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "specdec.h"

static int threads_of_process(void) {
  int count = 0;
  DIR* tasks = opendir("/proc/self/task");
  for (struct dirent* entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
  closedir(tasks);
  return count;
}

int main(int count, char** arguments) {
  if (count != 4) return 1;
  const int64_t nodes = atoll(arguments[2]), vocab = atoll(arguments[3]);
  int64_t* tokens = calloc(nodes, sizeof *tokens);
  int32_t* parents = calloc(nodes, sizeof *parents);
  for (int64_t i = 0; i < nodes; ++i) parents[i] = (int32_t)i - 1;
  const int32_t offsets[2] = {0, (int32_t)nodes};
  const int64_t key = 1;
  specdec_rows target = {SPECDEC_STRUCT(specdec_rows),
                         .data = calloc(nodes * vocab, sizeof(float)),
                         .dtype = SPECDEC_FLOAT32,
                         .count = nodes,
                         .size = vocab,
                         .row_stride = vocab};
  specdec_verify_args args = {SPECDEC_STRUCT(specdec_verify_args),
                              .target = &target,
                              .requests = 1,
                              .nodes = nodes,
                              .tokens = tokens,
                              .parents = parents,
                              .cu_nodes = offsets,
                              .proposals = calloc(nodes, 1),
                              .rule = (specdec_rule)atoi(arguments[1]),
                              .seeds = &key,
                              .positions = &key,
                              .width = nodes,
                              .out_tokens = calloc(nodes, sizeof(int64_t)),
                              .out_num_tokens = calloc(1, sizeof(int32_t)),
                              .out_num_accepted = calloc(1, sizeof(int32_t)),
                              .out_path = calloc(nodes, sizeof(int32_t)),
                              .out_status = calloc(1, sizeof(int32_t))};
  if (specdec_verify(&args, 2) != SPECDEC_OK) return fputs(specdec_error_message(), stderr), 1;
  return printf("%d\n", threads_of_process()) < 0;
}
