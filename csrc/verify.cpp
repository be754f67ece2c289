// SPDX-License-Identifier: Apache-2.0
#include "verify.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "node.h"
#include "path.h"
#include "report.h"

namespace specdec {
namespace {

// Writes one request's outputs.
class Output {
 public:
  Output(const VerifyArgs& args, Report& report, Worker& worker, int64_t b)
      : args_(args), report_(report), worker_(worker), path_(args.out_path + b * args.width), b_(b) {
    for (int64_t i = 0; i < args.width; ++i) write(i, -1);
    std::fill(path_, path_ + args.width, -1);
    report.clear(b, args.target->size);
  }

  bool wants_laws() const { return report_.asked(); }

  // The walk enters `node` by accepting its token, of which the parent's law is `p`; the root has no parent.
  void enter(int64_t node, int64_t token, const Law* p) {
    if (p) emit(token, p);
    path_[entered_++] = static_cast<int32_t>(node);
  }
  // The walk ends with the next token; without a law nothing is reported of it.
  void finish(int64_t token, const Law* p, int32_t status, bool drafted = false) {
    emit(token, p);
    close(status);
    Ends(args_, b_).finish(emitted_, token, drafted);
  }
  // The walk ends with a drafted token as the next one.
  void finish_with_drafted(int64_t token, const Law& p, int32_t status) { finish(token, &p, status, true); }
  // Nothing is emitted; a request with nodes may have nothing left.
  void close_empty(bool nodes) {
    close(0);
    const Ends ends(args_, b_);
    nodes ? ends.finish(0, -1, false) : ends.say(0);
  }

 private:
  void close(int32_t status) {
    args_.out_num_tokens[b_] = static_cast<int32_t>(emitted_);
    args_.out_num_accepted[b_] = static_cast<int32_t>(std::max<int64_t>(entered_ - 1, 0));
    args_.out_status[b_] = status;
  }
  void emit(int64_t token, const Law* p) {
    if (p && wants_laws()) report_.emit(worker_, b_, emitted_, token, *p, sampling_of(args_.sampling, b_));
    write(emitted_++, token);
  }
  void write(int64_t i, int64_t token) {
    const int64_t place = b_ * args_.width + i;
    if (args_.out_tokens_are_int32)
      static_cast<int32_t*>(args_.out_tokens)[place] = static_cast<int32_t>(token);
    else
      static_cast<int64_t*>(args_.out_tokens)[place] = token;
  }

  const VerifyArgs& args_;
  Report& report_;
  Worker& worker_;
  int32_t* path_;
  int64_t b_, emitted_ = 0, entered_ = 0;
};

class Walk {
 public:
  Walk(const VerifyArgs& args, Request& request, Output& output) : args_(args), r_(request), out_(output) {}

  void run() {
    out_.enter(0, -1, nullptr);
    if (args_.rule >= SPECDEC_TYPICAL && args_.rule <= SPECDEC_DEFERRED)
      lossy();
    else if (args_.rule == SPECDEC_MATCH || r_.sampling.greedy())
      match();
    else if (args_.rule == SPECDEC_TRAVERSAL)
      traversal();
    else
      token();
  }

 private:
  int64_t first_child(int64_t node, int64_t depth) const {
    return depth + 1 < args_.width && r_.has_row(node) ? r_.children.first(node) : -1;
  }

  void trace(double* array, int64_t node, double value) const {
    if (array) array[r_.first_row + node] = value;
  }

  // Draws the target's own token at each node and follows the child that holds it.
  void match() {
    int64_t node = 0, depth = 0;
    for (; r_.has_row(node) && r_.bonus(node) < 0; ++depth) {
      Law p;
      const int64_t token = draw_with_law(r_.worker, r_.target_row(node), r_.sampling,
                                          r_.next_stream(depth, Purpose::kNext), p);
      r_.status |= p.status;
      int64_t child = first_child(node, depth);
      while (child >= 0 && r_.tree.tokens[child] != token) child = r_.children.next(child);
      if (child < 0) return out_.finish(token, &p, r_.status);
      if (!r_.can_keep(child)) return out_.finish_with_drafted(token, p, r_.status);
      out_.enter(child, token, &p);
      node = child;
    }
    finish_with_bonus(node);
  }

  // Leviathan et al. 2023 on a chain, recursive rejection on a tree; Ensemble and Threshold with other tests.
  void token() {
    for (Node node(r_, 0, 0);;) {
      double summed = 0;
      int64_t child = first_child(node.index(), node.depth());
      if (child >= 0) node.load();
      for (int64_t next; child >= 0; child = next) {
        next = r_.children.next(child);
        const double p = node.residual_p(r_.tree.tokens[child]), q = node.proposal_q(child);
        if (args_.rule == SPECDEC_TOKEN) trace(args_.trace_thresholds, child, p < q ? p / q : p > 0);
        if (passes(node, child, p, q, summed)) break;
        trace(args_.trace_masses, child, node.reject(child, 1.0, next < 0));
      }
      if (child < 0) return finish(node);
      const int64_t token = r_.tree.tokens[child];
      if (!r_.can_keep(child)) return out_.finish_with_drafted(token, node.p(), r_.status);
      out_.enter(child, token, &node.p());
      node = Node(r_, child, node.depth() + 1);
    }
  }

  // Whether a child with P(x) = p and Q(x) = q is accepted; `summed`: p of its earlier siblings.
  bool passes(const Node& node, int64_t child, double p, double q, double& summed) const {
    const double* values = args_.rule_values;
    if (args_.rule == SPECDEC_THRESHOLD) {
      const double own = node.p().p(r_.tree.tokens[child]);
      summed += own;
      return r_.coin_of(node.index()) * values[1] < summed || (own > 0 && own >= values[0]);
    }
    if (args_.rule == SPECDEC_ENSEMBLE) {
      if (r_.tree.tokens[child] >= args_.target->size) return false;
      p = values[0] * p + (1 - values[0]) * q;
    }
    return r_.coin_of(child) * q < p;
  }

  // Traversal verification (Weng et al. 2025): block verification's tree form, the deepest nodes first.
  void traversal() {
    struct Visit {
      Node node;
      double w;             // the weight that reaches this node
      int64_t child, next;  // under test; the one after it
    };
    std::vector<Visit> path;
    const auto visit = [&](int64_t node, int64_t depth, double w) {
      path.push_back({Node(r_, node, depth), w, -1, first_child(node, depth)});
    };
    visit(0, 0, 1.0);
    for (bool rejected = false;;) {  // rejected: the child under test of the last visit
      Visit& v = path.back();
      if (rejected) {
        // A rejection never raises w. Where the coin fails already and no sibling is left, the residual is
        // not needed.
        bool failed = v.next < 0 && path.size() > 1 && r_.coin_of(v.node.index()) >= v.w;
        if (!failed) {
          const double mass = v.node.reject(v.child, v.w, v.next < 0);
          trace(args_.trace_masses, v.child, mass);
          failed = !(mass > 0) && v.w < 1;
          if (mass > 0) v.w = mass / (mass + (1 - v.w));
        }
        if (failed) {
          path.pop_back();
          continue;
        }
        rejected = false;
      }
      if (v.next >= 0) {
        v.node.load();
        v.child = v.next;
        v.next = r_.children.next(v.child);
        const double p = v.w * v.node.residual_p(r_.tree.tokens[v.child]), q = v.node.proposal_q(v.child);
        const double w = p < q ? p / q : p > 0;
        if (w > 0)
          visit(v.child, v.node.depth() + 1, w);
        else
          rejected = true;  // nothing below can be accepted
        continue;
      }
      if (path.size() > 1) {
        trace(args_.trace_thresholds, v.node.index(), v.w);
        if (!(r_.coin_of(v.node.index()) < v.w)) {
          path.pop_back();
          rejected = true;
          continue;
        }
      }
      break;
    }
    for (size_t i = 1; i < path.size(); ++i) {
      const int64_t node = path[i].node.index(), token = r_.tree.tokens[node];
      const Law& p = path[i - 1].node.p();
      if (!r_.can_keep(node)) return out_.finish_with_drafted(token, p, r_.status);
      out_.enter(node, token, &p);
    }
    finish(path.back().node);
  }

  // Every drafted node is tested against the unchanged p; the deepest that passes with all its ancestors is
  // kept.
  void lossy() {
    Sampling test_sampling = r_.sampling;
    if (test_sampling.greedy() && reads_p(args_.rule)) test_sampling.temperature = 1;
    struct Passed {
      int64_t node, depth;
      int64_t outstanding;  // of SPECDEC_DEFERRED: how many tokens have to match after it
    };
    std::vector<Passed> open{{0, 0, 0}};
    Passed best{0, 0, 0};
    while (!open.empty()) {
      const Passed v = open.back();
      open.pop_back();
      if (!v.outstanding && (v.depth > best.depth || (v.depth == best.depth && v.node < best.node))) best = v;
      int64_t child = first_child(v.node, v.depth);
      if (child < 0) continue;
      LossyTest test(*this, v.node, v.depth, test_sampling);
      for (; child >= 0; child = r_.children.next(child)) {
        if (args_.rule == SPECDEC_DEFERRED) {
          const int64_t outstanding = test.outstanding(child, v.outstanding);
          if (outstanding >= 0) open.push_back({child, v.depth + 1, outstanding});
        } else if (test.passes(child) && r_.tree.tokens[child] < args_.target->size) {
          open.push_back({child, v.depth + 1, 0});
        }
      }
    }
    std::vector<int64_t> path(best.depth + 1, 0);
    for (int64_t node = best.node, depth = best.depth; depth > 0; --depth, node = r_.tree.parents[node])
      path[depth] = node;
    for (int64_t depth = 1; depth <= best.depth; ++depth) {
      Law p;
      if (out_.wants_laws()) p = law_of(r_.worker, r_.target_row(path[depth - 1]), r_.sampling);
      const int64_t token = r_.tree.tokens[path[depth]];
      if (!r_.can_keep(path[depth])) return out_.finish_with_drafted(token, p, r_.status);
      out_.enter(path[depth], token, &p);
    }
    Node node(r_, best.node, best.depth);
    finish(node);
  }

  // Lossy rules that test p itself.
  static bool reads_p(int32_t rule) {
    return rule == SPECDEC_TYPICAL || rule == SPECDEC_RELAXED || rule == SPECDEC_DEFERRED;
  }

  class LossyTest {
   public:
    LossyTest(Walk& walk, int64_t node, int64_t depth, const Sampling& sampling)
        : walk_(walk), node_(walk.r_, node, depth), depth_(depth) {
      Request& r = walk.r_;
      const double* values = walk.args_.rule_values;
      if (walk.args_.rule == SPECDEC_LENIENT) node_.load();
      if (!reads_p(walk.args_.rule)) return;
      p_ = law_of(r.worker, r.target_row(node), sampling);
      r.status |= p_.status;
      if (walk.args_.rule == SPECDEC_TYPICAL) {
        bar_ = std::min(values[0], values[1] * std::exp(-entropy(r.worker, p_)));
      } else if (walk.args_.rule == SPECDEC_DEFERRED) {
        unsure_ = entropy(r.worker, p_) >= values[0];
      } else if (p_.point < 0) {
        bar_ = std::exp2(-p_.log2_mass) - values[1];
        score_bar_ =
            kth_largest(r.worker, p_.reader, most(values[0], walk_.args_.target->size), p_.weight.cut);
      }
    }

    // Of SPECDEC_DEFERRED: how many tokens have to match after the child, where `before` had to after its
    // parent; -1 = it does not pass.
    int64_t outstanding(int64_t child, int64_t before) const {
      const int64_t token = walk_.r_.tree.tokens[child];
      const double p = p_.p(token);
      if (!(p > 0)) return -1;
      if (p_.point >= 0 || p_.reader.score(token) >= p_.weight.max) return std::max<int64_t>(before - 1, 0);
      return before == 0 && unsure_ ? most(walk_.args_.rule_values[1], walk_.args_.width) : -1;
    }

    bool passes(int64_t child) {
      const Request& r = walk_.r_;
      const int64_t token = r.tree.tokens[child];
      const double* values = walk_.args_.rule_values;
      switch (walk_.args_.rule) {
        case SPECDEC_TYPICAL:
          return p_.p(token) > bar_;
        case SPECDEC_RELAXED:
          return p_.p(token) > 0 && p_.p(token) >= bar_ &&
                 (p_.point >= 0 || p_.reader.score(token) >= score_bar_);
        case SPECDEC_LENIENT:
          return r.coin_of(child) * node_.proposal_q(child) / values[0] < node_.p().p(token);
        default:
          return r.coin_of(child) < values[std::min(depth_, walk_.args_.rule_value_count - 1)];
      }
    }

   private:
    static int64_t most(double value, int64_t limit) {
      return value < static_cast<double>(limit) ? static_cast<int64_t>(value) : limit;
    }

    Walk& walk_;
    Node node_;
    int64_t depth_;
    Law p_;
    double bar_ = 0;
    float score_bar_ = -kInf;
    bool unsure_ = false;
  };

  // The walk ends at a node that is kept.
  void finish(Node& node) {
    if (r_.bonus(node.index()) >= 0) return finish_with_bonus(node.index());
    const int64_t token = node.draw();
    out_.finish(token, &node.p(), r_.status);
  }

  void finish_with_bonus(int64_t node) {
    Law p;
    const bool known = out_.wants_laws() && r_.has_row(node);
    if (known) p = law_of(r_.worker, r_.target_row(node), r_.sampling);
    out_.finish(r_.bonus(node), known ? &p : nullptr, r_.status);
  }

  const VerifyArgs& args_;
  Request& r_;
  Output& out_;
};

// Rows that are read for certain: the other rules visit a request's nodes one after another.
int64_t rows_read(const VerifyArgs& args) {
  return args.rule == SPECDEC_TRAVERSAL ? args.nodes : args.requests;
}

}  // namespace

void verify(const VerifyArgs& args, int threads) {
  const int64_t rows = args.nodes;
  Report report(args.requests, args.width, args.out_logprobs, args.logprobs, args.masks);
  threads = threads_for(rows_read(args) * args.target->size, threads);
  Team team(threads);
  team.items(args.requests, grain_of(args.target->size), [&](Worker& worker, int64_t b) {
    const int64_t begin = first_row_of(args.cu_nodes, b, rows);
    const int64_t end = first_row_of(args.cu_nodes, b + 1, rows);
    Output output(args, report, worker, b);
    if (end <= begin) return output.close_empty(false);
    Request request(args, worker, b, begin, end);
    if (!request.can_keep(0)) return output.close_empty(true);
    Walk(args, request, output).run();
  });
  report.list_ids(threads, args.out_status);
}

void sample(const specdec_sample_args& args, int threads) {
  Report report(args.logits->count, 1, args.out_logprobs, args.logprobs, nullptr);
  Team team(threads_for(args.logits->count * args.logits->size, threads));
  team.items(args.logits->count, grain_of(args.logits->size), [&](Worker& worker, int64_t b) {
    Row row = row_of(*args.logits, b);
    if (args.bitmask) row.bitmask = args.bitmask + b * args.bitmask_stride;
    const Sampling sampling = sampling_of(args.sampling, b);
    if (args.edits) {
      const auto request = std::make_shared<const RequestEdits>(*args.edits, b, row.vocab);
      row.edits = std::make_shared<const RowEdits>(request, std::vector<int64_t>{});
    }
    Law p;
    args.out_tokens[b] =
        draw_with_law(worker, row, sampling, Stream(args.seeds[b], args.positions[b], Purpose::kNext), p);
    if (!report.asked()) return;
    report.clear(b, args.logits->size);
    report.emit(worker, b, 0, args.out_tokens[b], p, sampling);
  });
}

}  // namespace specdec
