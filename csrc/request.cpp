// SPDX-License-Identifier: Apache-2.0
#include "request.h"

namespace specdec {
namespace {

Tree tree_of(const VerifyArgs& inputs, int64_t begin, int64_t end) {
  return {inputs.tokens + begin,
          inputs.parents + begin,
          inputs.proposals + begin,
          inputs.first_child ? inputs.first_child + begin : nullptr,
          inputs.first_child ? inputs.next_sibling + begin : nullptr,
          end - begin};
}

}  // namespace

Request::Request(const VerifyArgs& in, Worker& w, int64_t b, int64_t begin, int64_t end)
    : inputs(in),
      worker(w),
      index(b),
      first_row(begin),
      tree(tree_of(in, begin, end)),
      children(tree),
      sampling(sampling_of(in.sampling, b)),
      draft_sampling(sampling_of(in.draft_sampling, b)) {}

Row Request::target_row(int64_t node) const {
  Row row = row_of(*inputs.target, first_row + node);
  if (inputs.bitmask) row.bitmask = inputs.bitmask + (first_row + node) * inputs.bitmask_stride;
  return row;
}

Row Request::draft_row(int64_t node) const {
  if (!inputs.draft) return {};
  int64_t r = first_row + node;
  if (inputs.draft_rows)
    r = inputs.draft_rows[r];
  else if (inputs.draft_chain > 0)
    r = node < inputs.draft_chain ? index * inputs.draft_chain + node : -1;
  return r >= 0 && r < inputs.draft->count ? row_of(*inputs.draft, r) : Row{};
}

double Request::coin_of(int64_t node) const {
  return coin(Stream(inputs.seeds[index], inputs.positions[index], Purpose::kAccept, node));
}

Stream Request::next_stream(int64_t depth, Purpose purpose) const {
  return Stream(inputs.seeds[index], inputs.positions[index] + depth, purpose);
}

}  // namespace specdec
