// SPDX-License-Identifier: Apache-2.0
#include "node.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace specdec {

// What the kernels multiply q with stays finite: infinity times a q of 0 is no number.
constexpr double kLargestRatio = 3e38;

bool Node::is_point(int64_t child) const {
  return !has_q_ || request_->tree.proposal(child) == Proposal::kPoint;
}

void Node::load() {
  if (loaded_) return;
  loaded_ = true;
  Request& r = *request_;
  p_ = law_of(r.worker, r.target_row(index_), r.sampling);
  r.status |= p_.status;

  bool sampled = false;
  for (int64_t c = r.children.first(index_); c >= 0; c = r.children.next(c))
    sampled |= r.tree.proposal(c) != Proposal::kPoint;
  if (const Row row = sampled ? r.draft_row(index_) : Row{}; row.present()) {
    const bool logprobs = r.inputs.draft_form == SPECDEC_DRAFT_LOGPROBS;
    const bool probs = r.inputs.draft_form == SPECDEC_DRAFT_PROBS;
    q_ = logprobs ? law_of_logprobs(row)
         : probs  ? law_of_probs(row)
                  : law_of(r.worker, row, r.draft_sampling);
    if ((logprobs || probs) && drafted_the_impossible())
      q_.status = probs ? status_of_probs(r.worker, row) : law_of(r.worker, row, Sampling{}).status;
    has_q_ = q_.status == 0;  // a row with NaN, or with nothing left, is no draft row
    q_scale_ = std::exp2(-q_.log2_mass);
    if (has_q_ && q_.point >= 0 && r.inputs.draft_ids) q_.point = r.inputs.draft_ids[q_.point];
    if (r.inputs.draft_columns) {
      q_.reader.row.columns = r.inputs.draft_columns;
      q_.reader.row.vocab = r.inputs.target->size;
      q_.reader.maxima.clear();  // of the draft's own columns
    }
  }
  list_tracked();
}

// A law itself is taken on trust, and not read through, until a child turns out to be sampled from
// nothing.
bool Node::drafted_the_impossible() const {
  const Request& r = *request_;
  for (int64_t c = r.children.first(index_); c >= 0; c = r.children.next(c)) {
    int64_t token = r.tree.tokens[c];
    if (r.inputs.draft_columns) token = token < r.inputs.target->size ? r.inputs.draft_columns[token] : -1;
    if (r.tree.proposal(c) != Proposal::kPoint && !(q_.p(token) > 0)) return true;
  }
  return false;
}

void Node::list_tracked() {
  Request& r = *request_;
  bool without_replacement = false;
  for (int64_t c = r.children.first(index_); c >= 0; c = r.children.next(c)) {
    const bool point = is_point(c);
    const bool once = !point && r.tree.proposal(c) == Proposal::kWithoutReplacement;
    without_replacement |= once;
    if (point || once) tracked_.push_back({.token = r.tree.tokens[c], .point = point});
  }
  if (has_q_ && q_.point >= 0) tracked_.push_back({.token = q_.point});
  if (tracked_.empty()) return;

  std::sort(tracked_.begin(), tracked_.end(), [](const TrackedToken& s, const TrackedToken& t) {
    return s.token != t.token ? s.token < t.token : s.point > t.point;
  });
  tracked_.erase(std::unique(tracked_.begin(), tracked_.end(),
                             [](const TrackedToken& s, const TrackedToken& t) { return s.token == t.token; }),
                 tracked_.end());
  for (TrackedToken& s : tracked_) {
    s.p = p_.p(s.token);
    s.q = has_q_ ? q_.p(s.token) : 0;
    s.removed = s.point;
    excluded_.push_back(s.token);
  }
  if (without_replacement && q_.point < 0) weigh_rest();
}

// The mass of q outside the tracked tokens, summed over them and never as a difference. Weights are from now
// on relative to the largest score there, so that they do not vanish beside a tracked token that holds nearly
// all.
void Node::weigh_rest() {
  Reader reader = q_.reader;
  std::vector<int64_t> excluded = excluded_;
  if (const int32_t* columns = reader.row.columns) {
    excluded.clear();
    for (int64_t token : excluded_)
      if (token < reader.row.vocab && columns[token] >= 0) excluded.push_back(columns[token]);
    std::sort(excluded.begin(), excluded.end());
    reader.row.columns = nullptr;
    reader.row.vocab = reader.row.size;
  }
  reader.excluded = {excluded.data(), static_cast<int64_t>(excluded.size())};
  if (q_.weight.linear) {
    q_rest_ = sum_of(request_->worker, reader, q_.weight);
    return;
  }
  const Mass rest = mass_of(request_->worker, reader, q_.weight.slope, q_.weight.cut);
  if (rest.max == -kInf) return;  // nothing: q_rest_ stays 0
  const double log2_scale = (static_cast<double>(rest.max) - q_.weight.max) * q_.weight.slope - q_.log2_mass;
  q_.weight.max = rest.max;
  q_.log2_mass = -log2_scale;
  q_scale_ = std::exp2(log2_scale);
  q_rest_ = q_scale_ * rest.sum;
}

Node::TrackedToken* Node::tracked(int64_t token) {
  const auto it = std::lower_bound(tracked_.begin(), tracked_.end(), token,
                                   [](const TrackedToken& s, int64_t t) { return s.token < t; });
  return it != tracked_.end() && it->token == token ? &*it : nullptr;
}

double Node::residual_at(const TrackedToken& s) const {
  return s.rejected ? 0 : std::max(0.0, a_ * s.p - (s.point ? b_point_ : b_) * s.q);
}

double Node::residual_p(int64_t token) {
  if (const TrackedToken* s = tracked(token)) return residual_at(*s);
  return std::max(0.0, a_ * p_.p(token) - (b_ > 0 ? b_ * q_.p(token) : 0));
}

double Node::proposal_q(int64_t child) {
  const Tree& tree = request_->tree;
  factor_ = 0;
  if (is_point(child)) return 1;
  const int64_t token = tree.tokens[child];
  const auto known = [&](double q) {
    if (!(q > 0) && token < request_->inputs.target->size) request_->status |= kImpossible;
    return q;
  };
  if (tree.proposal(child) == Proposal::kIndependent) {
    factor_ = 1;
    return known(q_.p(token));
  }
  double remaining = q_rest_;
  for (const TrackedToken& s : tracked_)
    if (!s.removed) remaining += s.q;
  TrackedToken* s = tracked(token);
  const double q = known(s->removed ? 0 : s->q);
  s->removed = true;
  if (!(remaining > 0)) return 1;  // nothing it could have been drawn from
  factor_ = 1 / remaining;
  return factor_ * q;
}

double Node::reject(int64_t child, double w, bool last) {
  const Tree& tree = request_->tree;
  raced_ = false;
  if (factor_ == 0) {
    TrackedToken* s = tracked(tree.tokens[child]);
    const double rest = 1 - residual_at(*s);
    if (!(rest > 0)) return reset(), 0;
    s->rejected = true;
    normalise(rest);
    return w * rest;
  }
  const bool independent = tree.proposal(child) == Proposal::kIndependent;
  a_ *= w;
  b_ = b_ * w + factor_;
  b_point_ = b_point_ * w + (independent ? factor_ : 0);
  leader_ = {};
  const double mass = pass(last ? &leader_ : nullptr);
  if (!(mass > 0)) return reset(), 0;
  normalise(mass);
  raced_ = last;
  return mass;
}

void Node::normalise(double mass) {
  a_ /= mass;
  b_ /= mass;
  b_point_ /= mass;
}

void Node::reset() {
  a_ = 1;
  b_ = b_point_ = 0;
  for (TrackedToken& s : tracked_) s.rejected = false;
}

// The sum of [a p - b q]+ and, where asked for, the race over it. Scores are in units of p's weights.
double Node::pass(Leader* leader) {
  Request& r = *request_;
  const Stream stream = r.next_stream(depth_, Purpose::kResidual);
  if (p_.point >= 0) {
    const double mass = residual_p(p_.point);
    if (leader && mass > 0) *leader = {1, p_.point};
    return mass;
  }
  const double unit = a_ * std::exp2(-p_.log2_mass);
  const bool with_q = b_ > 0 && q_.point < 0;
  const float ratio = with_q ? static_cast<float>(std::min(b_ * q_scale_ / unit, kLargestRatio)) : 0.0f;
  Reader p = p_.reader, q = q_.reader;
  p.excluded = q.excluded = {excluded_.data(), static_cast<int64_t>(excluded_.size())};
  struct Part {
    double sum = 0;
    Leader leader;
  };
  std::vector<Part> parts(blocks_of(p.row.vocab));
  std::vector<Leader> hints(r.worker.slots());
  for_chunks(r.worker, p, p_.least(), [&](const float* x, int64_t n, int64_t begin, int64_t block, int slot) {
    const Kernels& k = kernels();
    Part& part = parts[block];
    if (part.leader.score == 0) part.leader = hints[slot];
    if (with_q) {
      alignas(64) float buffer[kChunk];
      const float* y = q.read(begin, std::min(kChunk, p.row.vocab - begin), buffer);
      part.sum += leader ? k.residual_race(x, y, n, p_.weight, q_.weight, ratio, stream, begin, part.leader)
                         : k.residual(x, y, n, p_.weight, q_.weight, ratio);
    } else {
      part.sum += leader ? k.race(x, n, p_.weight, stream, begin, part.leader) : k.sum(x, n, p_.weight);
    }
    hints[slot] = part.leader.hint();
  });
  double sum = 0, tracked_mass = 0;
  for (const Part& part : parts) {
    sum += part.sum;
    if (leader) leader->offer(part.leader.score, part.leader.token);
  }
  for (const TrackedToken& s : tracked_) {
    const double mass = residual_at(s);
    tracked_mass += mass;
    if (leader && mass > 0) leader->offer(mass / unit / race_key(stream, s.token), s.token);
  }
  return unit * sum + tracked_mass;
}

int64_t Node::draw() {
  Request& r = *request_;
  const Stream stream = r.next_stream(depth_, Purpose::kResidual);
  if (!loaded_) {
    loaded_ = true;
    const int64_t token = draw_with_law(r.worker, r.target_row(index_), r.sampling, stream, p_);
    r.status |= p_.status;
    return token;
  }
  bool changed = b_ > 0;
  for (const TrackedToken& s : tracked_) changed |= s.rejected;
  if (changed && !raced_) {
    leader_ = {};
    pass(&leader_);
    raced_ = true;
  }
  return changed && leader_.token >= 0 ? leader_.token : specdec::draw(r.worker, p_, stream);
}

}  // namespace specdec
