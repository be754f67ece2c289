// SPDX-License-Identifier: Apache-2.0
#include "budget.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace specdec {
namespace {

// Promises are sorted into buckets, one for each power of two of the odds. Draws have one bucket of their
// own.
constexpr int kBuckets = 8, kDraws = kBuckets;
constexpr float kMostWeight = 1e30f;
constexpr int32_t kMostSteps = std::numeric_limits<int32_t>::max() - 1;
using Shares = std::array<double, kBuckets + 1>;

int bucket(double promise) {
  static const auto bounds = [] {
    std::array<double, kBuckets - 1> out;
    for (int kind = 0; kind < kBuckets - 1; ++kind) {
      const double odds = std::pow(2.0, kind - 3.5);
      out[kind] = odds / (1.0 + odds);
    }
    return out;
  }();
  return static_cast<int>(std::upper_bound(bounds.begin(), bounds.end(), promise) - bounds.begin());
}

bool exists(float score) { return score > -std::numeric_limits<float>::infinity(); }  // false for NaN, too

struct Span {
  int64_t first, count;
};

// The rows of every request.
std::vector<Span> spans_of(const int32_t* cu_nodes, int64_t requests, int64_t rows) {
  std::vector<Span> spans(requests);
  int64_t first = std::clamp<int64_t>(cu_nodes[0], 0, rows);
  for (int64_t b = 0; b < requests; ++b) {
    const int64_t end = std::max(first, std::clamp<int64_t>(cu_nodes[b + 1], 0, rows));
    spans[b] = {first, end - first};
    first = end;
  }
  return spans;
}

// The tree of one request. A promise is the chance of a node given its parent, 0 for the root and where there
// is no node.
struct Draft {
  const int32_t* parents;
  std::vector<double> promises;
  std::vector<uint8_t> drawn, chosen;  // whether some child was drawn, chosen

  bool mixed(int64_t node) const { return drawn[node] && chosen[node]; }
};

Draft read(Span span, const int64_t* tokens, const int32_t* parents, const uint8_t* proposals,
           const float* scores) {
  const size_t count = static_cast<size_t>(span.count);
  Draft draft{parents + span.first, std::vector<double>(count), std::vector<uint8_t>(count),
              std::vector<uint8_t>(count)};
  std::vector<double> chances(count);
  for (int64_t node = 0; node < span.count; ++node) {
    const int64_t row = span.first + node, parent = draft.parents[node];
    chances[node] = exists(scores[row]) ? std::exp(std::min<double>(scores[row], 0.0)) : 0.0;
    if (parent < 0 || parent >= node || !(chances[parent] > 0.0) || (tokens && tokens[row] < 0)) continue;
    draft.promises[node] = std::min(chances[node] / chances[parent], 1.0);
    if (draft.promises[node] > 0.0)
      (proposals[row] == SPECDEC_POINT ? draft.chosen : draft.drawn)[parent] = 1;
  }
  return draft;
}

// A drafted node that may be kept.
struct Node {
  double value;     // what it is expected to bring
  int64_t request;  // nodes are taken by falling value, then by rising request, place and number
  int64_t place;    // its own number; of a drawn node and its siblings the first one's
  int64_t number;
  bool whole;  // it is kept with all its siblings or not at all

  bool operator<(const Node& other) const {
    return std::tie(other.value, request, place, number) <
           std::tie(value, other.request, other.place, other.number);
  }
  bool sibling_of(const Node& other) const {
    return value == other.value && request == other.request && place == other.place;
  }
};

// The value of a chosen node is its chance, of which every promise was corrected. A drawn node and its
// siblings have to be kept or not by what was known before the draw: their value is their parent's chance,
// corrected by the share of draws that were accepted. No value is larger than the parent's. All are worth the
// weight of the request.
void add_nodes(std::vector<Node>& found, int64_t request, const Draft& draft, const Shares& shares,
               double weight) {
  const int64_t count = static_cast<int64_t>(draft.promises.size());
  std::vector<double> chances(count), values(count);
  std::vector<int64_t> first(count, -1);  // child of each node
  chances[0] = values[0] = 1.0;
  for (int64_t node = 1; node < count; ++node) {
    const int64_t parent = draft.parents[node];
    const double promise = draft.promises[node];
    if (promise == 0.0 || !(values[parent] > 0.0)) continue;
    chances[node] = chances[parent] * std::min(promise * shares[bucket(promise)], 1.0);
    double value = chances[node];
    int64_t place = node;
    if (draft.drawn[parent]) {
      value = chances[parent] * std::min(shares[kDraws], 1.0);
      if (first[parent] < 0) first[parent] = node;
      place = first[parent];
    }
    values[node] = std::min(value, values[parent]);
    const double worth = weight * values[node];
    if (worth > 0.0) found.push_back({worth, request, place, node, draft.mixed(parent)});
  }
}

// Nodes in their order, from which a number of the first is kept.
struct Choice {
  const std::vector<Node>& nodes;
  int64_t plain;        // rows of plain decoding: the roots
  const double* costs;  // times of steps by rows
  int64_t max_rows;
  double credit;
  bool trial;  // at least one node is kept if the credit covers any

  int64_t count() const { return static_cast<int64_t>(nodes.size()); }
  bool affordable(int64_t rows) const {
    return rows <= max_rows && costs[rows] - costs[plain] <= credit && costs[rows] > 0.0;
  }

  // The number that brings the most tokens per time.
  int64_t best() const {
    int64_t kept = 0;
    double tokens = static_cast<double>(plain), highest = affordable(plain) ? tokens / costs[plain] : 0.0;
    if (trial) highest = 0.0;
    for (int64_t n = 1; n <= count() && plain + n <= max_rows; ++n) {
      tokens += nodes[n - 1].value;
      if (!affordable(plain + n) || !(tokens / costs[plain + n] > highest)) continue;
      kept = n;
      highest = tokens / costs[plain + n];
    }
    return kept;
  }

  // The same where nodes were drawn: no decision looks at a draw that it decides on. It goes on while the
  // next node is expected to bring more than a further row costs at the present rate, at the best price of
  // rows from here on.
  int64_t stopping() const {
    int64_t kept = 0;
    double tokens = static_cast<double>(plain);
    while (kept < count()) {
      const Node& next = nodes[kept];
      int64_t end = kept + 1;
      while (end < count() && next.whole && nodes[end].sibling_of(next)) ++end;
      if (!affordable(plain + end)) break;
      if (!(trial && kept == 0) && !(next.value * costs[plain + kept] > tokens * price(kept, end))) break;
      for (int64_t n = kept; n < end; ++n) tokens += nodes[n].value;
      kept = end;
    }
    return kept;
  }

 private:
  // Of a row beyond the nodes kept so far, if at least the nodes before `end` are added.
  double price(int64_t kept, int64_t end) const {
    double least = std::numeric_limits<double>::infinity();
    const double from = costs[plain + kept];
    for (int64_t rows = plain + end; rows <= max_rows; ++rows)
      least = std::min(least, (costs[rows] - from) / static_cast<double>(rows - plain - kept));
    return least;
  }
};

Shares shares_of(const specdec_select_nodes_args& a, int64_t request) {
  const specdec_budget& budget = *a.budget;
  const int64_t slot = a.request_slots ? a.request_slots[request] : request;
  Shares shares;
  shares.fill(1.0);
  if (slot < 0 || slot >= budget.slots) return shares;
  for (int kind = 0; kind <= kBuckets; ++kind) {
    const int64_t at = slot * (kBuckets + 1) + kind;
    shares[kind] = (budget.kept[at] + a.prior) / (budget.promised[at] + a.prior);
  }
  return shares;
}

// What a drafted token of a request is worth.
double weight_of(const specdec_select_nodes_args& a, int64_t request) {
  if (!a.weights) return 1.0;
  const float weight = a.weights[request];
  return weight > 0.0f ? std::min(weight, kMostWeight) : 0.0;  // 0 for NaN, too
}

// The trees of the kept rows.
void write(const specdec_select_nodes_args& a, const std::vector<Span>& spans,
           const std::vector<uint8_t>& kept) {
  std::vector<int32_t> numbers(a.nodes);
  int64_t out = 0;
  for (int64_t b = 0; b < a.requests; ++b) {
    a.out_cu_nodes[b] = static_cast<int32_t>(out);
    const auto [first, count] = spans[b];
    int32_t number = 0;
    for (int64_t row = first; row < first + count; ++row) {
      if (!kept[row]) continue;
      numbers[row] = number++;
      a.out_tokens[out] = a.tokens[row];
      a.out_parents[out] = row == first ? -1 : numbers[first + a.parents[row]];
      a.out_proposals[out] = a.proposals[row];
      a.out_scores[out] = a.scores[row];
      a.out_rows[out] = static_cast<int32_t>(row);
      if (a.draft_rows) a.out_draft_rows[out] = a.draft_rows[row];
      ++out;
    }
  }
  a.out_cu_nodes[a.requests] = static_cast<int32_t>(out);
  for (const int64_t rows = std::min(a.budget->max_rows, a.nodes); out < rows; ++out) {
    a.out_tokens[out] = a.out_parents[out] = a.out_rows[out] = -1;
    a.out_proposals[out] = SPECDEC_POINT;
    a.out_scores[out] = -std::numeric_limits<float>::infinity();
    if (a.draft_rows) a.out_draft_rows[out] = -1;
  }
}

}  // namespace

void select_nodes(const specdec_select_nodes_args& a) {
  const std::vector<Span> spans = spans_of(a.cu_nodes, a.requests, a.nodes);
  std::vector<uint8_t> kept(a.nodes);
  std::vector<Node> nodes;
  int64_t plain = 0;
  bool drawn = false;
  for (int64_t b = 0; b < a.requests; ++b) {
    if (spans[b].count == 0 || !exists(a.scores[spans[b].first])) continue;
    const Draft draft = read(spans[b], a.tokens, a.parents, a.proposals, a.scores);
    add_nodes(nodes, b, draft, shares_of(a, b), weight_of(a, b));
    for (const uint8_t each : draft.drawn) drawn |= each != 0;
    kept[spans[b].first] = 1;
    ++plain;
  }
  std::sort(nodes.begin(), nodes.end());
  const specdec_budget& budget = *a.budget;
  const Choice choice{nodes,           plain,          budget.costs,
                      budget.max_rows, *budget.credit, *budget.idle_steps >= a.patience};
  const int64_t count = drawn ? choice.stopping() : choice.best();
  for (int64_t n = 0; n < count; ++n) kept[spans[nodes[n].request].first + nodes[n].number] = 1;
  write(a, spans, kept);
}

void update_budget(const specdec_update_budget_args& a) {
  const specdec_budget& budget = *a.budget;
  const std::vector<Span> spans = spans_of(a.cu_nodes, a.requests, a.nodes);
  int64_t emitting = 0, emitted = 0;
  for (int64_t b = 0; b < a.requests; ++b) {
    if (a.num_tokens[b] <= 0) continue;
    ++emitting;
    emitted += a.num_tokens[b];
    const int64_t slot = a.request_slots ? a.request_slots[b] : b;
    if (slot < 0 || slot >= budget.slots || spans[b].count == 0) continue;
    double *promised = budget.promised + slot * (kBuckets + 1), *kept = budget.kept + slot * (kBuckets + 1);
    for (int kind = 0; kind <= kBuckets; ++kind) promised[kind] *= a.decay, kept[kind] *= a.decay;
    const Draft draft = read(spans[b], nullptr, a.parents, a.proposals, a.scores);
    std::vector<uint8_t> accepted(spans[b].count);
    for (int64_t i = b * a.width; i < (b + 1) * a.width; ++i)
      if (a.path[i] >= 0 && a.path[i] < spans[b].count) accepted[a.path[i]] = 1;
    const auto count = [&](int kind, double promise, double hit) {
      promised[kind] += promise;
      kept[kind] += hit;
    };
    for (int64_t node = 1; node < spans[b].count; ++node) {
      const double promise = draft.promises[node];
      if (promise == 0.0 || !accepted[draft.parents[node]]) continue;
      count(bucket(promise), promise, accepted[node]);
      if (draft.drawn[draft.parents[node]]) count(kDraws, 1.0, accepted[node]);
    }
  }
  if (emitting == 0) return;
  const auto cost = [&](int64_t rows) { return budget.costs[std::min(rows, budget.max_rows)]; };
  const int64_t rows = spans.back().first + spans.back().count;
  const double plain = cost(emitting) * static_cast<double>(emitted) / static_cast<double>(emitting);
  const double credit = *budget.credit + (1.0 + a.allowance) * plain - cost(rows);
  *budget.credit = std::isnan(credit) ? 0.0 : std::min(credit, a.max_credit);
  *budget.idle_steps = rows <= emitting ? std::min(*budget.idle_steps, kMostSteps) + 1 : 0;
}

}  // namespace specdec
