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

int64_t bonus_of(const VerifyArgs& inputs, int64_t b) {
  if (!inputs.bonus_tokens) return -1;
  const int64_t token = inputs.bonus_tokens_are_int32 ? static_cast<const int32_t*>(inputs.bonus_tokens)[b]
                                                      : static_cast<const int64_t*>(inputs.bonus_tokens)[b];
  return token >= 0 && token < inputs.target->size ? token : -1;
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
      draft_sampling(sampling_of(in.draft_sampling, b)),
      bonus_token(bonus_of(in, b)),
      ends(Ends(in, b).of(tree)) {
  sampling.whole = in.masks && in.masks->out_mass;
  if (!in.edits) return;
  edits_ = std::make_shared<const RequestEdits>(*in.edits, b, in.target->size);
  row_edits_.resize(tree.nodes);
  status = edits_->status();
}

int64_t Request::target_row_of(int64_t node) const {
  int64_t r = first_row + node;
  if (inputs.target_rows)
    r = inputs.target_rows[r];
  else if (inputs.rows_end_early)
    r = node + 1 < tree.nodes ? r - index : -1;
  return r < inputs.target->count ? r : -1;
}

int64_t Request::bonus(int64_t node) const {
  if (bonus_token < 0 || ends_at(node)) return -1;
  const bool ends = node + 1 == tree.nodes || (!has_row(node) && tree.tokens[node + 1] < 0);
  return ends ? bonus_token : -1;
}

Row Request::target_row(int64_t node) {
  Row row = row_of(*inputs.target, target_row_of(node));
  if (inputs.bitmask) row.bitmask = inputs.bitmask + (first_row + node) * inputs.bitmask_stride;
  if (edits_) {
    std::shared_ptr<const RowEdits>& edits = row_edits_[node];
    if (!edits) {
      std::vector<int64_t> path;
      tree.path_to(node, path);
      edits = std::make_shared<const RowEdits>(edits_, path);
    }
    row.edits = edits;
  }
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
  // Positions may be any number: what is beyond the largest wraps.
  const uint64_t position = static_cast<uint64_t>(inputs.positions[index]) + static_cast<uint64_t>(depth);
  return Stream(inputs.seeds[index], static_cast<int64_t>(position), purpose);
}

}  // namespace specdec
