// SPDX-License-Identifier: Apache-2.0
#include "edit_logits.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "edits.h"
#include "mass.h"
#include "path.h"
#include "tree.h"

namespace specdec {
namespace {

void write(const Row& row, int64_t token, float x) {
  void* out = const_cast<void*>(offset(row.data, token * bytes_of(row.dtype)));
  kernels().write(&x, 1.0f, 1, row.dtype, out);
}

void edit_row(const Row& row) {
  const RowEdits& edits = *row.edits;
  if (edits.forced() >= 0) {
    for (int64_t token = 0; token < row.size; ++token)
      write(row, token, token == edits.forced() ? 0.0f : -kInf);
    return;
  }
  Reader reader;
  reader.row = row;
  float buffer[kChunk];
  for (int64_t begin = 0; begin < row.size; begin += kChunk) {
    const int64_t n = std::min(kChunk, row.size - begin);
    if (!edits.touches(begin, n)) continue;
    const float* x = reader.read(begin, n, buffer);
    edits.for_tokens(begin, n, [&](int64_t token) { write(row, token, x[token - begin]); });
  }
}

}  // namespace

void edit_logits(const specdec_edit_logits_args& args, int threads) {
  const int64_t vocab = args.logits->size;
  Team team(threads_for(args.logits->count * vocab, threads));
  team.items(args.requests, 1, [&](Worker&, int64_t b) {
    const auto request = std::make_shared<const RequestEdits>(*args.edits, b, vocab);
    std::vector<int64_t> path;
    const auto edit = [&](int64_t r) {
      if (r < 0 || r >= args.logits->count) return;
      Row row = row_of(*args.logits, r);
      row.edits = std::make_shared<const RowEdits>(request, path);
      edit_row(row);
    };
    if (!args.cu_nodes) return edit(b);
    const int64_t begin = first_row_of(args.cu_nodes, b, args.nodes);
    const int64_t end = first_row_of(args.cu_nodes, b + 1, args.nodes);
    const Tree tree{args.tokens + begin, args.parents + begin, nullptr, nullptr, nullptr, end - begin};
    for (int64_t node = 0; node < tree.nodes; ++node) {
      tree.path_to(node, path);
      edit(args.target_rows ? args.target_rows[begin + node] : begin + node);
    }
  });
}

}  // namespace specdec
