// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention_plan.h"
#include "attention_prefix.h"
#include "attention_scratch.h"
#include "attention_tree.h"
#include "kernels.h"
#include "team.h"

namespace specdec {
namespace attention {
namespace {

// Rows of no request: zeros, and nothing seen.
void clear_unowned_rows(const Plan& plan) {
  const AttentionArgs& a = plan.args();
  const int64_t row_bytes = a.query_heads * a.value_size * bytes_of(a.query->dtype);
  int64_t row = 0;
  const auto clear_until = [&](int64_t end) {
    for (; row < end; ++row) {
      std::memset(static_cast<char*>(a.out) + row * row_bytes, 0, row_bytes);
      if (a.out_lse) std::fill_n(a.out_lse + row * a.query_heads, a.query_heads, -kInf);
    }
  };
  for (const Request& r : plan.requests()) {
    clear_until(r.begin);
    row = std::max(row, r.begin + r.nodes);
  }
  clear_until(a.nodes);
}

// One unit, from its queries to its outputs. Splits of the prefix may be taken by other threads; they are
// merged in their order.
class UnitAttention {
 public:
  UnitAttention(const Plan& plan, Memory& memory, Worker& worker, const Unit& unit)
      : plan_(plan),
        memory_(memory),
        worker_(worker),
        unit_(unit),
        args_(plan.args()),
        request_(plan.request_of(unit)),
        kernels_(*kernels().attention),
        own_(memory.of(worker.slot())),
        prefix_(plan, memory, unit) {}

  void run() {
    const SoftmaxState total = memory_.state(own_.total, prefix_.width());
    memory_.clear(total, prefix_.width());
    attend_prefix(total);
    const SoftmaxState rows = in_place(total);
    for (int64_t h = 0; h < unit_.heads; ++h)
      for (int64_t i = 0; i < unit_.nodes; ++i)
        finish_node(unit_.head + h, i, memory_.from(rows, h * kInPlaceRows + i * plan_.group()));
  }

 private:
  void attend_prefix(const SoftmaxState& total) {
    const int64_t width = prefix_.width(), split_size = request_.split_tiles * kTile;
    const int64_t first_tile = prefix_.begin() / kTile * kTile, first_split = prefix_.begin() / split_size;
    if (first_split < request_.splits) prefix_.pack_queries(own_.queries);
    for (int64_t split = first_split; split < request_.splits; split += memory_.splits_at_once()) {
      const int64_t count = std::min(memory_.splits_at_once(), request_.splits - split);
      worker_.blocks(count, [&](int64_t i, int slot) {
        const SoftmaxState state = memory_.partial(own_, i, width);
        memory_.clear(state, width);
        const int64_t from = std::max((split + i) * split_size, first_tile);
        const int64_t to = std::min((split + i + 1) * split_size, request_.prefix);
        prefix_.attend(from, to, own_.queries, memory_.of(slot), state);
      });
      for (int64_t i = 0; i < count; ++i) merge(total, memory_.partial(own_, i, width));
    }
  }

  void merge(const SoftmaxState& total, const SoftmaxState& part) const {
    const int64_t width = prefix_.width();
    if (!plan_.packed(unit_)) return kernels_.merge_rows(total, part, width, args_.value_size);
    for_blocks(kernels_, width, [&](int64_t row, int64_t n) {
      kernels_.merge_packed(memory_.from(total, row), memory_.from(part, row), n, args_.value_size);
    });
  }

  // The rows one after the other, their values scaled.
  SoftmaxState in_place(const SoftmaxState& total) const {
    const int64_t rows = plan_.rows_of(unit_);
    if (!plan_.packed(unit_)) {
      for (int64_t h = 0; h < unit_.heads; ++h)
        memory_.scale(memory_.from(total, h * kInPlaceRows), rows, scale_of(*args_.value, unit_.head + h));
      return total;
    }
    const SoftmaxState out{total.max, total.sum, own_.rows};
    for_blocks(kernels_, prefix_.width(), [&](int64_t row, int64_t n) {
      kernels_.unpack(memory_.from(total, row).out, std::min(n, rows - row), args_.value_size,
                      scale_of(*args_.value, unit_.head), memory_.from(out, row).out);
    });
    return out;
  }

  void finish_node(int64_t head, int64_t i, const SoftmaxState& rows) const {
    Path(plan_, memory_, unit_, i, own_).attend(head, rows);
    const int64_t row = request_.begin + unit_.first_node + i;
    for (int64_t g = 0; g < plan_.group(); ++g)
      finish_row(row * args_.query_heads + head * plan_.group() + g, memory_.from(rows, g));
  }

  // The sink, the division by the sum of weights, and the output; `at` counts rows of all query heads.
  void finish_row(int64_t at, const SoftmaxState& row) const {
    if (args_.sinks) {
      float max = args_.sinks[at % args_.query_heads] * kLog2E, sum = 1;
      kernels_.merge_rows(row, {&max, &sum, nullptr}, 1, args_.value_size);
    }
    const float sum = *row.sum;
    char* out = static_cast<char*>(args_.out) + at * args_.value_size * bytes_of(args_.query->dtype);
    kernels().write(row.out, sum == 0 ? 0.0f : 1 / sum, args_.value_size, args_.query->dtype, out);
    if (args_.out_lse)
      args_.out_lse[at] = sum == 0 ? -kInf : static_cast<float>(*row.max * std::log(2.0) + std::log(sum));
  }

  const Plan& plan_;
  Memory& memory_;
  Worker& worker_;
  const Unit& unit_;
  const AttentionArgs& args_;
  const Request& request_;
  const AttentionKernels& kernels_;
  Scratch& own_;
  const Prefix prefix_;
};

}  // namespace
}  // namespace attention

void tree_attention(const AttentionArgs& args, int threads) {
  const attention::Plan plan(args, threads);
  attention::clear_unowned_rows(plan);
  if (plan.units().empty()) return;
  attention::Memory memory(plan);
  Team team(plan.threads());
  team.items(static_cast<int64_t>(plan.units().size()), 1, [&](Worker& worker, int64_t item) {
    attention::UnitAttention(plan, memory, worker, plan.units()[item]).run();
  });
}

}  // namespace specdec
