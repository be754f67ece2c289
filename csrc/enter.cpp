// SPDX-License-Identifier: Apache-2.0
#include "enter.h"

#include <algorithm>

namespace specdec {
namespace {

// An array of one of two widths.
struct Integers {
  const void* data;
  int32_t are_int32;

  int64_t operator[](int64_t i) const {
    return are_int32 ? static_cast<const int32_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
  }
};

constexpr int32_t kUnlinked = -2;

// A child is entered once, so that links in a ring end.
void enter_parents(int64_t nodes, const int32_t* first_child, const int32_t* next_sibling, int32_t* parents) {
  std::fill_n(parents, nodes, kUnlinked);
  parents[0] = -1;
  for (int64_t v = 0; v < nodes; ++v)
    for (int64_t c = first_child[v]; c > 0 && parents[c] == kUnlinked; c = next_sibling[c])
      parents[c] = static_cast<int32_t>(v);
  std::replace(parents + 1, parents + nodes, kUnlinked, int32_t{0});
}

}  // namespace

void enter_chains(const specdec_enter_chains_args& args) {
  const Integers drafts{args.drafts, args.drafts_are_int32};
  const Integers cu_drafts{args.cu_drafts, args.cu_drafts_are_int32};
  const int64_t requests = args.requests, rows = args.draft_count + requests;
  // Sums that are none may wrap: nothing but what they are is said of them.
  const auto end_of = [&](int64_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(cu_drafts[b]) + static_cast<uint32_t>(b + 1));
  };
  args.out_cu_nodes[0] = 0;
  for (int64_t b = 0; b < requests; ++b) args.out_cu_nodes[b + 1] = end_of(b);
  int64_t b = 0;
  for (int64_t row = 0; row < rows; ++row) {
    while (b < requests && row >= args.out_cu_nodes[b + 1]) ++b;
    const int64_t node = row - args.out_cu_nodes[b], place = row - b - 1;
    const bool drafted = b < requests && node > 0 && place >= 0 && place < args.draft_count;
    args.out_tokens[row] = drafted ? drafts[place] : -1;
    args.out_parents[row] = static_cast<int32_t>(std::clamp<int64_t>(node - 1, -1, rows));
  }
}

void enter_links(const specdec_enter_links_args& args) {
  const Integers tokens{args.tokens, args.tokens_are_int32};
  const Integers links[] = {{args.next_token, args.links_are_int32},
                            {args.next_sibling, args.links_are_int32}};
  int32_t* const out[] = {args.out_first_child, args.out_next_sibling};
  const int64_t nodes = args.nodes, roots = nodes - args.columns;
  for (int64_t b = 0; b < args.requests && nodes; ++b) {
    const int64_t begin = b * nodes, column = b * args.columns;
    for (int64_t v = roots; args.tokens && v < nodes; ++v)
      args.out_tokens[begin + v] = tokens[column + v - roots];
    for (int which = 0; which < 2; ++which)
      for (int64_t v = begin; v < begin + nodes; ++v) {
        const int64_t link = links[which][v];
        out[which][v] = link >= 0 && link < nodes ? static_cast<int32_t>(link) : -1;
      }
    enter_parents(nodes, out[0] + begin, out[1] + begin, args.out_parents + begin);
  }
}

}  // namespace specdec
