// SPDX-License-Identifier: Apache-2.0
// One node of the draft tree under verification: the target's law p, the draft's law q, and the residual as
// scalars. The residual after any rejections is a * p - b * q where that is positive. Only at the tokens of
// POINT and WITHOUT_REPLACEMENT children may it differ: they are few, are left out of the passes over the
// vocabulary, and are tracked one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "request.h"

namespace specdec {

class Node {
 public:
  Node(Request& request, int64_t index, int64_t depth) : request_(&request), index_(index), depth_(depth) {}

  int64_t index() const { return index_; }
  int64_t depth() const { return depth_; }

  // Reads what the tests of the children need; later calls do nothing.
  void load();
  // P(token) of the present residual.
  double residual_p(int64_t token);
  // Q(token of the child), to be asked of the children in their order, and of those that are tested only: a
  // token of the vocabulary that could not have been drawn sets kImpossible.
  double proposal_q(int64_t child);
  // Rejects the child whose Q was asked for last, after a test with P scaled by w: returns the mass S of [w P
  // - Q]+, which, normalised, is the new P. A mass of 0 leaves P = p. `last`: no sibling follows, so the next
  // token is raced for in the same pass.
  double reject(int64_t child, double w, bool last);
  // The next token, ~ P.
  int64_t draw();
  // The target's law at this node; load() or draw() must have been called.
  const Law& p() const { return p_; }

 private:
  // A token that passes leave out: its p, q and P are kept here.
  struct TrackedToken {
    int64_t token;
    double p = 0, q = 0;
    bool point = false;     // a POINT child holds it
    bool removed = false;   // from the law of the next WITHOUT_REPLACEMENT child
    bool rejected = false;  // as a point: P is 0 here
  };

  bool is_point(int64_t child) const;
  TrackedToken* tracked(int64_t token);
  double residual_at(const TrackedToken& s) const;
  bool drafted_the_impossible() const;
  void list_tracked();
  void weigh_rest();
  double pass(Leader* leader);
  void normalise(double mass);
  void reset();

  Request* request_;
  int64_t index_, depth_;
  bool loaded_ = false, has_q_ = false, raced_ = false;
  Law p_, q_;
  double q_scale_ = 0;                 // q = q_scale_ * weight, outside the tracked tokens
  double q_rest_ = 0;                  // mass of q outside the tracked tokens; known where a child needs it
  double a_ = 1, b_ = 0;               // P = [a p - b q]+
  double b_point_ = 0;                 // in place of b at the tokens of POINT children
  double factor_ = 0;                  // Q = factor * q for the child asked for last; 0 = a point
  Leader leader_;                      // of the last pass, where it raced
  std::vector<TrackedToken> tracked_;  // by token
  std::vector<int64_t> excluded_;      // their tokens
};

}  // namespace specdec
