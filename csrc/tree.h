// SPDX-License-Identifier: Apache-2.0
// The draft tree of one request.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace specdec {

enum class Proposal : uint8_t { kPoint = 0, kIndependent = 1, kWithoutReplacement = 2 };

struct Tree {
  const int64_t* tokens = nullptr;
  const int32_t* parents = nullptr;
  const uint8_t* proposals = nullptr;
  const int32_t* first_child = nullptr;  // both null: siblings in index order
  const int32_t* next_sibling = nullptr;
  int64_t nodes = 0;

  // Values that are none count as POINT, which is always safe.
  Proposal proposal(int64_t node) const {
    return proposals[node] <= static_cast<uint8_t>(Proposal::kWithoutReplacement)
               ? static_cast<Proposal>(proposals[node])
               : Proposal::kPoint;
  }

  // The tokens of a node and its ancestors, topmost first, without the root's. A parent that is no node
  // before its child ends them.
  void path_to(int64_t node, std::vector<int64_t>& path) const {
    path.clear();
    while (node > 0) {
      path.push_back(tokens[node]);
      if (parents[node] < 0 || parents[node] >= node) break;
      node = parents[node];
    }
    std::reverse(path.begin(), path.end());
  }
};

// The children of each node that hold a drafted token, in sibling order. Links are checked while they are
// copied, so a malformed tree leads neither out of bounds nor round in circles: a child has a higher index
// than its parent, names it, and is listed once; whatever else the links say is dropped.
class Children {
 public:
  explicit Children(const Tree& tree) : links_(2 * tree.nodes, -1) {
    first_ = links_.data();
    next_ = first_ + tree.nodes;
    if (tree.first_child) {
      std::vector<bool> listed(tree.nodes);
      for (int64_t v = 0; v < tree.nodes; ++v) {
        int32_t* link = first_ + v;
        for (int64_t c = tree.first_child[v]; c > v && c < tree.nodes && tree.parents[c] == v && !listed[c];
             c = tree.next_sibling[c]) {
          listed[c] = true;
          if (tree.tokens[c] >= 0) *link = static_cast<int32_t>(c), link = next_ + c;
        }
      }
    } else {
      for (int64_t c = tree.nodes - 1; c > 0; --c) {
        const int64_t v = tree.parents[c];
        if (v < 0 || v >= c || tree.tokens[c] < 0) continue;
        next_[c] = first_[v];
        first_[v] = static_cast<int32_t>(c);
      }
    }
  }

  // -1 = none.
  int64_t first(int64_t node) const { return first_[node]; }
  int64_t next(int64_t child) const { return next_[child]; }

 private:
  std::vector<int32_t> links_;
  int32_t *first_, *next_;
};

}  // namespace specdec
