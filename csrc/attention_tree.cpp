// SPDX-License-Identifier: Apache-2.0
#include "attention_tree.h"

#include <algorithm>

#include "kernels.h"

namespace specdec::attention {

Path::Path(const Plan& plan, const Memory& memory, const Unit& unit, int64_t i, Scratch& own)
    : plan_(plan),
      memory_(memory),
      unit_(unit),
      i_(i),
      own_(own),
      args_(plan.args()),
      request_(plan.request_of(unit)),
      depth_(plan.depth_of(request_, unit.first_node + i)) {
  first_depth_ = args_.window ? std::max<int64_t>(depth_ - args_.window + 1, 0) : 0;
  int64_t node = unit.first_node + i;
  for (int64_t depth = depth_; depth >= first_depth_; node = plan.parent_of(request_, node), --depth)
    own.path[depth] = static_cast<int32_t>(node);
}

void Path::attend(int64_t head, const SoftmaxState& rows) const {
  const AttentionKernels& kernels = *specdec::kernels().attention;
  const bool fresh = args_.new_key != nullptr;
  const Scoring scoring = plan_.scoring(fresh ? 1.0f : scale_of(*args_.key, head));
  const float value_scale = fresh ? 1.0f : scale_of(*args_.value, head);
  for (int64_t g = 0; g < plan_.group(); g += kInPlaceRows) {
    const int64_t count = std::min<int64_t>(kInPlaceRows, plan_.group() - g);
    const void* query[kInPlaceRows] = {};
    for (int64_t m = 0; m < count; ++m) query[m] = plan_.query(unit_, head, i_, g + m);
    kernels.pack_rows({query, args_.query->dtype, args_.head}, kInPlaceRows, memory_.key_pad(),
                      own_.node_query);
    const SoftmaxState state = memory_.state(own_.node_state, kInPlaceRows);
    memory_.clear(state, kInPlaceRows);
    for (int64_t depth = first_depth_; depth <= depth_; depth += kTile) {
      TileRows tile;
      Prefetch nothing;
      find(head, depth, std::min<int64_t>(kTile, depth_ + 1 - depth), tile);
      const RowList keys{tile.keys(), fresh ? args_.new_key->dtype : args_.key->dtype, args_.head};
      const RowList values{tile.values(), fresh ? args_.new_value->dtype : args_.value->dtype,
                           args_.value_size};
      kernels.attend_in_place(keys, values, {tile.count, tile.visible, nullptr}, scoring, own_.node_query,
                              count, state, nothing, nothing);
    }
    memory_.scale(state, count, value_scale);
    kernels.merge_rows(memory_.from(rows, g), state, count, args_.value_size);
  }
}

// The rows of `count` nodes of the path.
void Path::find(int64_t head, int64_t depth, int64_t count, TileRows& tile) const {
  tile.clear(count, memory_.zeros());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t node = own_.path[depth + i];
    if (args_.new_key) {
      const int64_t row = request_.begin + node;
      tile.set(i, row_of(*args_.new_key, row, head), row_of(*args_.new_value, row, head));
      continue;
    }
    const int64_t position = request_.prefix + node, slot = position % args_.page_size;
    const int64_t page = page_at(args_, unit_.request, position / args_.page_size);
    if (page >= 0) tile.set(i, row_of(*args_.key, page, slot, head), row_of(*args_.value, page, slot, head));
  }
}

}  // namespace specdec::attention
