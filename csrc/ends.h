// SPDX-License-Identifier: Apache-2.0
// Where one request ends: its stop tokens and limits, and what becomes of them after a step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "specdec.h"
#include "tree.h"

namespace specdec {

class Ends {
 public:
  Ends(const specdec_verify_args& args, int64_t b) : args_(args), b_(b) {}

  bool finished() const { return args_.finished && args_.finished[b_]; }

  // Of every node of a tree whether no token may follow it, of the root whether the request has ended;
  // nothing where none can end.
  std::vector<bool> of(const Tree& tree) const {
    if (!args_.stop_count && !args_.new_tokens_left && !args_.context_left && !args_.finished) return {};
    std::vector<bool> ends(tree.nodes);
    std::vector<int32_t> depths(tree.nodes);
    const int64_t limit = std::min(left(args_.new_tokens_left), left(args_.context_left));
    ends[0] = finished() || limit <= 0;
    for (int64_t i = 1; i < tree.nodes; ++i) {
      const int64_t parent = tree.parents[i];
      depths[i] = parent >= 0 && parent < i ? depths[parent] + 1 : 1;
      ends[i] = depths[i] >= limit || stops(tree.tokens[i]);
    }
    return ends;
  }

  // The request has emitted so many tokens, the last of which may have been a drafted one.
  void finish(int64_t emitted, int64_t last, bool drafted) const {
    if (finished()) return say(0);
    int32_t reason = emitted > 0 && stops(last) ? SPECDEC_FINISH_STOP : 0;
    if (lower(args_.new_tokens_left, emitted)) reason |= SPECDEC_FINISH_LENGTH;
    if (lower(args_.context_left, emitted)) reason |= SPECDEC_FINISH_CONTEXT;
    if (args_.finished && reason) args_.finished[b_] = 1;
    say(reason | (drafted ? SPECDEC_FINISH_DRAFTED : 0));
  }
  void say(int32_t finish) const {
    if (args_.out_finish) args_.out_finish[b_] = finish;
  }

 private:
  int64_t left(const int32_t* lefts) const { return lefts ? lefts[b_] : std::numeric_limits<int64_t>::max(); }
  bool stops(int64_t token) const {
    const int64_t* begin = args_.stop_tokens + b_ * args_.stop_count;
    return args_.stop_count && std::find(begin, begin + args_.stop_count, token) != begin + args_.stop_count;
  }
  // Whether nothing is left then. More than what is left was never emitted.
  bool lower(int32_t* lefts, int64_t emitted) const {
    return lefts && (lefts[b_] -= static_cast<int32_t>(emitted)) <= 0;
  }

  const specdec_verify_args& args_;
  int64_t b_;
};

}  // namespace specdec
