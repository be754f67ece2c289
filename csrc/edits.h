// SPDX-License-Identifier: Apache-2.0
// Penalties, biases, bans and forced tokens: what is made of a row's scores where they are read. The tokens
// of a slot are sorted, so a chunk finds those that are in it without a search; the few tokens of biases,
// bans and the path are sorted lists of their own, united with the slot's.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels.h"
#include "specdec.h"

namespace specdec {

// What a token has beside its counts in the slot.
struct TokenEdit {
  int64_t token;
  int64_t count = 0;  // on the path
  float bias = 0;
  bool banned = false;
};

// Of one request.
class RequestEdits {
 public:
  RequestEdits(const specdec_edits& given, int64_t b, int64_t vocab);

  int32_t status() const { return overflowed_ ? SPECDEC_STATUS_OVERFLOW : 0; }

 private:
  friend class RowEdits;

  void find_slot();
  void weigh_slot(int64_t size);
  void list_fixed();
  bool matches(const int64_t* word, const std::vector<int64_t>& path) const;

  const specdec_edits& given_;
  int64_t b_, vocab_, slot_;
  bool penalized_ = false, overflowed_ = false, lowers_;
  float repetition_, frequency_, presence_;
  // Of the slot: tokens, how often they stand in prompt and output, and the first of every chunk.
  const int32_t *tokens_ = nullptr, *prompt_ = nullptr, *output_ = nullptr;
  std::vector<int32_t> first_in_chunk_;
  // What its penalties do to a score: the factor, and what is taken away for frequency and for presence.
  std::unique_ptr<float[]> factors_, frequent_, present_;
  std::vector<TokenEdit> fixed_;  // biases and bans, ascending, at every node
};

// Of the row at a node.
class RowEdits {
 public:
  // `path`: the tokens of the node and its ancestors, topmost first, without the root's.
  RowEdits(std::shared_ptr<const RequestEdits> request, const std::vector<int64_t>& path);

  int64_t forced() const { return forced_; }  // the row is a point mass at this token; -1 = it is not

  bool lowers() const { return request_.lowers_; }  // no score is raised

  // Whether scores of tokens [begin, begin + n) change: a chunk or its beginning, here and in the next two.
  bool touches(int64_t begin, int64_t n) const;
  // Changes these scores.
  void apply(float* x, int64_t begin, int64_t n) const;
  // Calls body(token) for every token in that range that may have changed.
  template <class Body>
  void for_tokens(int64_t begin, int64_t n, Body&& body) const {
    const Run run = counted(begin);
    for (int64_t i = run.begin; i < run.end; ++i)
      if (const int64_t token = request_.tokens_[i]; token >= begin && token < begin + n) body(token);
    for_listed(begin, n, [&](int64_t token, const TokenEdit*, const TokenEdit*) { body(token); });
  }
  // The changed score of one token.
  float edited(float x, int64_t token) const;

 private:
  struct Run {
    int64_t begin, end;
  };

  Run counted(int64_t begin) const;
  // Calls body(token, of the path or null, fixed or null) for every token of the two lists in that range.
  template <class Body>
  void for_listed(int64_t begin, int64_t n, Body&& body) const;
  template <bool lowers>
  void penalize(float* x, int64_t begin, int64_t n, Run run) const;
  float edited(float x, int64_t token, Run run, const TokenEdit* of_path, const TokenEdit* fixed) const;

  const std::shared_ptr<const RequestEdits> owner_;
  const RequestEdits& request_;
  std::vector<TokenEdit> path_;  // of the path and of bad words, ascending
  bool bans_;                    // whether the banned tokens are banned here
  int64_t forced_ = -1;
};

// ---- Of the templates ----

template <class Body>
void RowEdits::for_listed(int64_t begin, int64_t n, Body&& body) const {
  const auto first = [begin](const std::vector<TokenEdit>& list) {
    const TokenEdit* edit = list.data();
    for (size_t left = list.size(); left > 0;) {  // the first at or after `begin`
      const size_t half = left / 2;
      if (edit[half].token < begin)
        edit += half + 1, left -= half + 1;
      else
        left = half;
    }
    return edit;
  };
  const TokenEdit *p = first(path_), *p_end = path_.data() + path_.size();
  const TokenEdit *f = first(request_.fixed_), *f_end = request_.fixed_.data() + request_.fixed_.size();
  for (;;) {
    const int64_t none = begin + n;
    const int64_t of_path = p != p_end ? p->token : none, fixed = f != f_end ? f->token : none;
    const int64_t token = of_path < fixed ? of_path : fixed;
    if (token >= none) return;
    body(token, of_path == token ? p : nullptr, fixed == token ? f : nullptr);
    p += of_path == token;
    f += fixed == token;
  }
}

}  // namespace specdec
