// SPDX-License-Identifier: Apache-2.0
#include "ngram.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "mass.h"

namespace specdec {
namespace {

struct Occurrence {
  int64_t n, end;  // the last n tokens of the text end at `end`, too
};

struct Text {
  const int64_t* tokens;
  int64_t length;
  bool cyclic;

  Text(const specdec_ngram_search& args, int64_t b)
      : tokens(args.tokens + b * args.width),
        length(std::clamp<int64_t>(args.lengths[b], 0, args.width)),
        cyclic(args.cyclic) {}

  // The most tokens, up to `most`, that the text up to `end` shares with its own end.
  int64_t shared(int64_t end, int64_t most) const {
    int64_t n = 0;
    while (n < most && n <= end && tokens[end - n] == tokens[length - 1 - n]) ++n;
    return n;
  }

  bool has(int64_t end, int64_t i) const { return cyclic || end + 1 + i < length; }
  // Token i of what follows `end`.
  int64_t after(int64_t end, int64_t i) const {
    const int64_t place = end + 1 + i;
    return tokens[place < length ? place : end + 1 + i % (length - 1 - end)];
  }
};

// Ends of the earlier occurrences of the longest n-gram, the most recent first.
std::vector<int64_t> longest(const Text& text, const specdec_ngram_search& args, bool only_latest) {
  std::vector<int64_t> ends;
  int64_t best = args.min_ngram;
  for (int64_t end = text.length - 2; end >= 0; --end) {
    if (text.tokens[end] != text.tokens[text.length - 1]) continue;
    const int64_t n = text.shared(end, args.max_ngram);
    if (n > best) ends.clear(), best = n;
    if (n == best && !(only_latest && !ends.empty())) ends.push_back(end);
    if (only_latest && best == args.max_ngram && !ends.empty()) break;
  }
  return ends;
}

// What most continuations have at i, the most recent one's among equals; those that differ leave.
int64_t vote(const Text& text, std::vector<int64_t>& ends, int64_t i) {
  struct Ballot {
    int64_t token, order;
  };
  std::vector<Ballot> ballots;
  for (size_t e = 0; e < ends.size(); ++e)
    if (text.has(ends[e], i)) ballots.push_back({text.after(ends[e], i), static_cast<int64_t>(e)});
  if (ballots.empty()) {
    ends.clear();
    return -1;
  }
  std::sort(ballots.begin(), ballots.end(), [](const Ballot& a, const Ballot& b) {
    return a.token != b.token ? a.token < b.token : a.order < b.order;
  });
  size_t first = 0, most = 0;
  for (size_t begin = 0, end; begin < ballots.size(); begin = end) {
    for (end = begin; end < ballots.size() && ballots[end].token == ballots[begin].token;) ++end;
    if (end - begin > most || (end - begin == most && ballots[begin].order < ballots[first].order))
      first = begin, most = end - begin;
  }
  std::vector<int64_t> agreeing;
  for (size_t b = first; b < first + most; ++b) agreeing.push_back(ends[ballots[b].order]);
  ends = agreeing;
  return ballots[first].token;
}

void draft(const specdec_ngram_draft_args& args, int64_t b) {
  const Text text(*args.search, b);
  int64_t* out = args.out + b * args.num_draft;
  std::fill(out, out + args.num_draft, -1);
  std::vector<int64_t> ends = longest(text, *args.search, !args.frequent);
  for (int64_t i = 0; i < args.num_draft && !ends.empty(); ++i) {
    if (args.frequent && ends.size() > 1) {
      out[i] = vote(text, ends, i);
    } else {
      if (!text.has(ends[0], i)) break;
      out[i] = text.after(ends[0], i);
    }
  }
}

// The best occurrences, by n and then the most recent first.
std::vector<Occurrence> best_occurrences(const Text& text, const specdec_ngram_tree_args& args) {
  std::vector<Occurrence> best;
  for (int64_t end = text.length - 2; end >= 0; --end) {
    if (text.tokens[end] != text.tokens[text.length - 1]) continue;
    const int64_t n = text.shared(end, args.search->max_ngram);
    const bool full = static_cast<int64_t>(best.size()) == args.branches;
    if (n < args.search->min_ngram || (full && best.back().n >= n)) continue;
    if (full) best.pop_back();
    best.insert(std::find_if(best.begin(), best.end(), [n](const Occurrence& o) { return o.n < n; }),
                {n, end});
    if (static_cast<int64_t>(best.size()) == args.branches && best.back().n == args.search->max_ngram) break;
  }
  return best;
}

struct Node {
  int64_t token;
  int32_t parent;
  double chance, left;  // left: that the text goes here and to none of the children so far
};

std::vector<Node> grow(const Text& text, const specdec_ngram_tree_args& args) {
  // A node deeper than there are places has too many ancestors, none of them less likely, to be kept.
  const int64_t max_depth = std::min(args.max_depth, args.max_nodes - 1);
  std::vector<Node> nodes = {{text.length ? text.tokens[text.length - 1] : -1, -1, 1, 1}};
  for (const Occurrence& o : best_occurrences(text, args)) {
    size_t node = 0;
    for (int64_t i = 0; i < max_depth && text.has(o.end, i); ++i) {
      const int64_t token = text.after(o.end, i);
      size_t child = node + 1;
      while (child < nodes.size() &&
             !(nodes[child].parent == static_cast<int32_t>(node) && nodes[child].token == token))
        ++child;
      if (child == nodes.size()) {
        const double trust = args.trust[std::min(o.n + i, args.trust_count) - 1];
        const double chance = trust * nodes[node].left;
        nodes[node].left -= chance;
        nodes.push_back({token, static_cast<int32_t>(node), chance, chance});
      }
      node = child;
    }
  }
  return nodes;
}

// The kept nodes depth first, the likeliest child, which was found first, first.
std::vector<int32_t> depth_first(const std::vector<Node>& nodes, std::vector<int32_t> kept) {
  std::sort(kept.begin(), kept.end(), std::greater<int32_t>());
  std::vector<int32_t> order, stack = {0};
  while (!stack.empty()) {
    const int32_t node = stack.back();
    stack.pop_back();
    order.push_back(node);
    for (int32_t other : kept)
      if (nodes[other].parent == node) stack.push_back(other);
  }
  return order;
}

void tree(const specdec_ngram_tree_args& args, int64_t b) {
  const std::vector<Node> nodes = grow(Text(*args.search, b), args);
  std::vector<int32_t> order(nodes.size()), place(nodes.size(), -1);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t i, int32_t j) { return nodes[i].chance > nodes[j].chance; });
  if (static_cast<int64_t>(order.size()) > args.max_nodes) order.resize(args.max_nodes);
  while (!(nodes[order.back()].chance > 0)) order.pop_back();
  order = depth_first(nodes, std::move(order));
  const int64_t begin = b * args.max_nodes, count = static_cast<int64_t>(order.size());
  for (int64_t i = 0; i < args.max_nodes; ++i) {
    const Node* node = i < count ? &nodes[order[i]] : nullptr;
    if (node) place[order[i]] = static_cast<int32_t>(i);
    args.out_tokens[begin + i] = node ? node->token : -1;
    args.out_parents[begin + i] = !node ? 0 : node->parent < 0 ? -1 : place[node->parent];
    args.out_scores[begin + i] =
        node ? static_cast<float>(std::log(node->chance)) : -std::numeric_limits<float>::infinity();
  }
}

template <class Body>
void for_each_text(const specdec_ngram_search& search, int threads, Body&& body) {
  Team team(threads_for(search.requests * search.width, threads));
  team.items(search.requests, grain_of(search.width), [&](Worker&, int64_t b) { body(b); });
}

}  // namespace

void ngram_draft(const specdec_ngram_draft_args& args, int threads) {
  for_each_text(*args.search, threads, [&](int64_t b) { draft(args, b); });
}

void ngram_tree(const specdec_ngram_tree_args& args, int threads) {
  for_each_text(*args.search, threads, [&](int64_t b) { tree(args, b); });
}

}  // namespace specdec
