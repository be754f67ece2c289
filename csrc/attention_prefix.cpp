// SPDX-License-Identifier: Apache-2.0
#include "attention_prefix.h"

#include <algorithm>
#include <utility>

#include "kernels.h"

namespace specdec::attention {
namespace {

int64_t width_of(const Plan& plan, const Unit& unit) {
  return plan.packed(unit) ? padded(plan.rows_of(unit), kernels().attention->lanes)
                           : unit.heads * kInPlaceRows;
}

bool can_go_by_slots(const AttentionArgs& a, const Memory& memory) {
  return !a.deterministic && a.key->dtype == a.value->dtype && a.head == memory.key_pad() &&
         a.value_size == memory.value_pad();
}

}  // namespace

Prefix::Prefix(const Plan& plan, const Memory& memory, const Unit& unit)
    : plan_(plan),
      memory_(memory),
      unit_(unit),
      args_(plan.args()),
      request_(plan.request_of(unit)),
      kernels_(*kernels().attention),
      rows_(plan.rows_of(unit)),
      width_(width_of(plan, unit)),
      by_slots_(can_go_by_slots(args_, memory) && 2 * rows_ <= kernels_.lanes),
      begin_(request_.prefix) {
  for (int64_t i = 0; i < unit.nodes; ++i) {
    const int64_t first = plan.first_visible(request_, unit.first_node + i);
    begin_ = std::min(begin_, first);
    all_see_from_ = std::max(all_see_from_, first);
  }
}

void Prefix::pack_queries(float* out) const {
  const void* list[kMaxBlock];
  const auto queries = [&](int64_t head, int64_t row, int64_t n) -> RowList {
    for (int64_t i = 0; i < n; ++i)
      list[i] = row + i < rows_
                    ? plan_.query(unit_, head, (row + i) / plan_.group(), (row + i) % plan_.group())
                    : nullptr;
    return {list, args_.query->dtype, args_.head};
  };
  const int64_t pad = memory_.key_pad();
  if (plan_.packed(unit_))
    for_blocks(kernels_, width_, [&](int64_t row, int64_t n) {
      kernels_.pack_columns(queries(unit_.head, row, n), n, out + row * pad);
    });
  else
    for (int64_t h = 0; h < unit_.heads; ++h)
      kernels_.pack_rows(queries(unit_.head + h, 0, kInPlaceRows), kInPlaceRows, pad,
                         out + h * kInPlaceRows * pad);
}

void Prefix::attend(int64_t from, int64_t to, const float* queries, Scratch& scratch,
                    const SoftmaxState& state) const {
  if (plan_.packed(unit_))
    attend_packed(from, to, queries, scratch, state);
  else
    attend_in_place(from, to, queries, state);
}

void Prefix::attend_in_place(int64_t from, int64_t to, const float* queries,
                             const SoftmaxState& state) const {
  TileRows now, next;
  Scoring scoring[kMaxHeads];
  for (int64_t h = 0; h < unit_.heads; ++h) scoring[h] = plan_.scoring(scale_of(*args_.key, unit_.head + h));
  float first[kInPlaceRows];
  for (int64_t at = from; at < to; at += kTile) {
    const bool last = at + kTile >= to;
    Keys keys;
    keys.first = first_of_rows(at, 0, kInPlaceRows, first);
    find(unit_.head, at, to, now);
    if (by_slots_ && now.visible == ~uint64_t{0} && !keys.first) {
      if (!last) find(unit_.head, at + kTile, to, next);
      attend_slots(now, last ? now : next, scoring, queries, state);
      continue;
    }
    // The values are asked for while the keys are at work, the next head's keys while the values are.
    for (int64_t h = 0; h < unit_.heads; ++h) {
      next.count = 0;
      if (h + 1 < unit_.heads)
        find(unit_.head + h + 1, at, to, next);
      else if (!last)
        find(unit_.head, at + kTile, to, next);
      Prefetch during_keys{now.values(), now.count, args_.value_size * bytes_of(args_.value->dtype)};
      Prefetch during_values{next.keys(), next.count, args_.head * bytes_of(args_.key->dtype)};
      keys.count = now.count;
      keys.visible = now.visible;
      kernels_.attend_in_place({now.keys(), args_.key->dtype, args_.head},
                               {now.values(), args_.value->dtype, args_.value_size}, keys, scoring[h],
                               queries + h * kInPlaceRows * memory_.key_pad(), rows_,
                               memory_.from(state, h * kInPlaceRows), during_keys, during_values);
      std::swap(now, next);
    }
  }
}

void Prefix::attend_slots(TileRows& now, TileRows& next, const Scoring* scoring, const float* queries,
                          const SoftmaxState& state) const {
  Slots slots;
  std::copy_n(now.rows, 2 * kTile, slots.rows);
  std::copy_n(next.keys(), kTile, slots.rows + 2 * kTile);
  slots.dtype = args_.key->dtype;
  slots.heads = unit_.heads;
  slots.key_size = args_.head;
  slots.value_size = args_.value_size;
  slots.key_step = args_.key->head_stride * bytes_of(args_.key->dtype);
  slots.value_step = args_.value->head_stride * bytes_of(args_.value->dtype);
  slots.scoring = scoring;
  kernels_.attend_slots(slots, queries, rows_, state);
}

void Prefix::attend_packed(int64_t from, int64_t to, const float* queries, Scratch& scratch,
                           const SoftmaxState& state) const {
  TileRows now, next;
  float first[kMaxBlock];
  const int64_t pad = memory_.key_pad();
  const int64_t bytes = std::max(args_.head, args_.value_size) * bytes_of(args_.key->dtype);
  const int64_t blocks = (width_ + kernels_.block - 1) / kernels_.block;
  const int64_t share =
      (2 * kTile + blocks - 1) / blocks;  // of the next tile's rows, for each block to ask for
  const Scoring scoring = plan_.scoring(scale_of(*args_.key, unit_.head));
  if (from < to) find(unit_.head, from, to, now);
  for (int64_t at = from; at < to; at += kTile, std::swap(now, next)) {
    next.count = 0;
    if (at + kTile < to) find(unit_.head, at + kTile, to, next);
    kernels_.pack_rows({now.keys(), args_.key->dtype, args_.head}, padded(now.count, kParts), pad,
                       scratch.key_rows);
    kernels_.pack_panels({now.values(), args_.value->dtype, args_.value_size}, now.count,
                         scratch.value_panels);
    int64_t asked = 0;
    for_blocks(kernels_, width_, [&](int64_t row, int64_t n) {
      const Keys keys{now.count, now.visible, first_of_rows(at, row, n, first)};
      const Tile tile{keys, scratch.key_rows, scratch.value_panels, pad};
      Prefetch prefetch{next.rows + asked, next.count ? std::min(share, 2 * kTile - asked) : 0, bytes};
      asked += prefetch.count;
      kernels_.attend_packed(tile, scoring, queries + row * pad, args_.head, n, memory_.from(state, row),
                             args_.value_size, scratch.scores, prefetch);
    });
  }
}

// The rows of a tile of positions up to `end`, those before `begin_` left out.
void Prefix::find(int64_t head, int64_t from, int64_t end, TileRows& tile) const {
  const int64_t to = std::min(from + kTile, end);
  tile.clear(to - from, memory_.zeros());
  int64_t position = std::max(from, begin_);
  int64_t index = position / args_.page_size, slot = position % args_.page_size;
  for (; position < to; ++index, slot = 0) {
    const int64_t run = std::min(args_.page_size - slot, to - position);
    const int64_t page = page_at(args_, unit_.request, index);
    for (int64_t i = 0; page >= 0 && i < run; ++i)
      tile.set(position + i - from, row_of(*args_.key, page, slot + i, head),
               row_of(*args_.value, page, slot + i, head));
    position += run;
  }
}

// For each of n rows the first position of a tile that it sees; null where all see the whole tile.
const float* Prefix::first_of_rows(int64_t tile, int64_t row, int64_t n, float* out) const {
  if (tile >= all_see_from_) return nullptr;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t node = unit_.first_node + std::min((row + i) / plan_.group(), unit_.nodes - 1);
    out[i] = static_cast<float>(std::clamp<int64_t>(plan_.first_visible(request_, node) - tile, 0, kTile));
  }
  return out;
}

}  // namespace specdec::attention
