// SPDX-License-Identifier: Apache-2.0
#include "edits.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "view.h"

namespace specdec {
namespace {

float ban(float x) { return std::isnan(x) ? x : -kInf; }

// What is not finite, or no penalty, is off.
float penalty_of(const float* per_request, double number, int64_t b, float off, float above) {
  const float value = per_request ? per_request[b] : static_cast<float>(number);
  return std::isfinite(value) && value > above ? value : off;
}

int64_t times(int32_t count) { return std::max(count, 0); }

// Makes one entry of those with the same token.
void unite(std::vector<TokenEdit>& edits) {
  std::stable_sort(edits.begin(), edits.end(),
                   [](const TokenEdit& a, const TokenEdit& b) { return a.token < b.token; });
  size_t kept = 0;
  for (size_t i = 0; i < edits.size(); ++i) {
    const TokenEdit edit = edits[i];
    if (kept > 0 && edits[kept - 1].token == edit.token) {
      TokenEdit& united = edits[kept - 1];
      united.count += edit.count;
      united.bias += edit.bias;
      united.banned |= edit.banned;
    } else {
      edits[kept++] = edit;
    }
  }
  edits.resize(kept);
}

}  // namespace

RequestEdits::RequestEdits(const specdec_edits& given, int64_t b, int64_t vocab)
    : given_(given), b_(b), vocab_(vocab), slot_(given.request_slots ? given.request_slots[b] : b) {
  constexpr float kAny = -std::numeric_limits<float>::infinity();
  if (slot_ < 0 || slot_ >= given.slots) slot_ = -1;
  repetition_ = penalty_of(given.repetitions, given.repetition, b, 1, 0);
  frequency_ = penalty_of(given.frequencies, given.frequency, b, 0, kAny);
  presence_ = penalty_of(given.presences, given.presence, b, 0, kAny);
  if (given.count_tokens) find_slot();
  list_fixed();
  lowers_ = repetition_ >= 1 && frequency_ >= 0 && presence_ >= 0 &&
            std::all_of(fixed_.begin(), fixed_.end(), [](const TokenEdit& edit) { return edit.bias <= 0; });
}

// Finds the counts of the slot. Its tokens ascend; if they do not, some may be missed, and none is read
// outside.
void RequestEdits::find_slot() {
  penalized_ = true;
  if (slot_ < 0) return;
  const int32_t size = given_.count_sizes[slot_];
  if (size > given_.capacity) {
    overflowed_ = true;
    penalized_ = false;
    return;
  }
  if (size <= 0) return;
  tokens_ = given_.count_tokens + slot_ * given_.capacity;
  prompt_ = given_.count_prompt + slot_ * given_.capacity;
  output_ = given_.count_output + slot_ * given_.capacity;
  const int64_t chunks = (vocab_ + kChunk - 1) / kChunk;
  first_in_chunk_.assign(chunks + 1, size);
  int32_t i = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    while (i < size && tokens_[i] < chunk * kChunk) ++i;
    first_in_chunk_[chunk] = i;
  }
  while (i < size && tokens_[i] < vocab_) ++i;
  first_in_chunk_[chunks] = i;
  weigh_slot(size);
}

// Once for all rows of the request; compiled to vector instructions.
void RequestEdits::weigh_slot(int64_t size) {
  factors_ = std::make_unique_for_overwrite<float[]>(size);
  frequent_ = std::make_unique_for_overwrite<float[]>(size);
  present_ = std::make_unique_for_overwrite<float[]>(size);
  const int32_t *prompts = prompt_, *outputs = output_;
  float *factors = factors_.get(), *frequent = frequent_.get(), *present = present_.get();
  const float repetition = repetition_, frequency = frequency_, presence = presence_;
  const int32_t with_prompt = given_.penalize_prompt ? -1 : 0;
  for (int64_t i = 0; i < size; ++i) {
    const int32_t prompt = std::max(prompts[i], 0), output = std::max(outputs[i], 0);
    const int32_t counted = prompt & with_prompt;
    // Their sum may be larger than an int32_t; a double holds it.
    const float count = static_cast<float>(static_cast<double>(counted) + static_cast<double>(output));
    factors[i] = (prompt | output) ? repetition : 1.0f;
    frequent[i] = frequency * count;
    present[i] = (counted | output) ? presence : 0.0f;
  }
}

void RequestEdits::list_fixed() {
  for (int64_t i = 0; i < given_.bias_count; ++i) {
    const int64_t token = given_.bias_tokens[b_ * given_.bias_count + i];
    if (token >= 0 && token < vocab_)
      fixed_.push_back({.token = token, .bias = given_.bias_values[b_ * given_.bias_count + i]});
  }
  for (int64_t i = 0; i < given_.banned_count; ++i) {
    const int64_t token = given_.banned_tokens[b_ * given_.banned_count + i];
    if (token >= 0 && token < vocab_) fixed_.push_back({.token = token, .banned = true});
  }
  unite(fixed_);
}

// Whether all tokens of a word but its last were just written. The word has -1 on its left.
bool RequestEdits::matches(const int64_t* word, const std::vector<int64_t>& path) const {
  const int64_t length = given_.bad_word_length, depth = static_cast<int64_t>(path.size());
  int64_t first = 0;
  while (first < length - 1 && word[first] < 0) ++first;
  for (int64_t back = 1; length - 1 - back >= first; ++back) {
    int64_t written = -1;
    const int64_t place = given_.recent_width - (back - depth);
    if (back <= depth)
      written = path[depth - back];
    else if (given_.recent && slot_ >= 0 && place >= 0)
      written = given_.recent[slot_ * given_.recent_width + place];
    if (written < 0 || written != word[length - 1 - back]) return false;
  }
  return true;
}

RowEdits::RowEdits(std::shared_ptr<const RequestEdits> owner, const std::vector<int64_t>& path)
    : owner_(std::move(owner)), request_(*owner_) {
  const RequestEdits& request = request_;
  const specdec_edits& given = request.given_;
  const int64_t b = request.b_, depth = static_cast<int64_t>(path.size());
  bans_ = !given.banned_until || depth < given.banned_until[b];
  if (depth < given.forced_count) {
    const int64_t token = given.forced_tokens[b * given.forced_count + depth];
    if (token >= 0 && token < request.vocab_) forced_ = token;
  }
  if (request.penalized_)
    for (int64_t token : path)
      if (token >= 0 && token < request.vocab_) path_.push_back({.token = token, .count = 1});
  for (int64_t i = 0; i < given.bad_word_count; ++i) {
    const int64_t* word = given.bad_words + (b * given.bad_word_count + i) * given.bad_word_length;
    const int64_t token = word[given.bad_word_length - 1];
    if (token >= 0 && token < request.vocab_ && request.matches(word, path))
      path_.push_back({.token = token, .banned = true});
  }
  unite(path_);
}

RowEdits::Run RowEdits::counted(int64_t begin) const {
  if (request_.first_in_chunk_.empty()) return {0, 0};
  const int32_t* first = request_.first_in_chunk_.data() + begin / kChunk;
  return {first[0], first[1]};
}

bool RowEdits::touches(int64_t begin, int64_t n) const {
  const Run run = counted(begin);
  if (run.begin < run.end) return true;
  bool listed = false;
  for_listed(begin, n, [&](int64_t, const TokenEdit*, const TokenEdit*) { listed = true; });
  return listed;
}

// x / r for x > 0, otherwise x * r, without a branch: the smaller of the two where r >= 1 (`lowers`),
// otherwise the larger. Of four scores at a time, or of one.
template <bool lowers, class T>
T penalized(T x, T factor, T frequent, T present) {
  const T up = x / factor, down = x * factor;
  const T score = lowers ? (up < down ? up : down) : (up > down ? up : down);
  return score - frequent - present;
}

template <bool lowers>
void RowEdits::penalize(float* x, int64_t begin, int64_t n, Run run) const {
  typedef float Four __attribute__((vector_size(16)));
  const RequestEdits& r = request_;
  const float *factors = r.factors_.get(), *frequent = r.frequent_.get(), *present = r.present_.get();
  const auto place = [&](int64_t i) {
    return static_cast<uint32_t>(r.tokens_[i]) - static_cast<uint32_t>(begin);
  };
  int64_t i = run.begin;
  for (; i + 4 <= run.end; i += 4) {
    const uint32_t a = place(i), b = place(i + 1), c = place(i + 2), d = place(i + 3);
    if ((a >= n) | (b >= n) | (c >= n) | (d >= n)) break;  // only where the tokens do not ascend
    Four factor, less, lesser;
    std::memcpy(&factor, factors + i, sizeof factor);
    std::memcpy(&less, frequent + i, sizeof less);
    std::memcpy(&lesser, present + i, sizeof lesser);
    const Four out = penalized<lowers>(Four{x[a], x[b], x[c], x[d]}, factor, less, lesser);
    x[a] = out[0], x[b] = out[1], x[c] = out[2], x[d] = out[3];
  }
  for (; i < run.end; ++i)
    if (const uint32_t a = place(i); a < n)
      x[a] = penalized<lowers>(x[a], factors[i], frequent[i], present[i]);
}

float RowEdits::edited(float x, int64_t token, Run run, const TokenEdit* of_path,
                       const TokenEdit* fixed) const {
  const RequestEdits& r = request_;
  if (r.penalized_) {
    int64_t prompt = 0, output = of_path ? of_path->count : 0;
    const int32_t* end = r.tokens_ + run.end;
    const int32_t* found = std::lower_bound(r.tokens_ + run.begin, end, token);
    if (found != end && *found == token) {
      prompt = times(r.prompt_[found - r.tokens_]);
      output += times(r.output_[found - r.tokens_]);
    }
    const int64_t count = r.given_.penalize_prompt ? prompt + output : output;
    if (prompt + output > 0) x = x > 0 ? x / r.repetition_ : x * r.repetition_;
    if (count > 0) {
      x -= r.frequency_ * static_cast<float>(count);
      x -= r.presence_;
    }
  }
  if (fixed) x = fixed->bias == -kInf ? ban(x) : x + fixed->bias;
  const bool banned = (fixed && fixed->banned && bans_) || (of_path && of_path->banned);
  return banned ? ban(x) : x;
}

void RowEdits::apply(float* x, int64_t begin, int64_t n) const {
  const Run run = counted(begin);
  float before[kChunk];
  int64_t listed = 0;
  for_listed(begin, n,
             [&](int64_t token, const TokenEdit*, const TokenEdit*) { before[listed++] = x[token - begin]; });
  if (request_.repetition_ >= 1)
    penalize<true>(x, begin, n, run);
  else
    penalize<false>(x, begin, n, run);
  listed = 0;
  for_listed(begin, n, [&](int64_t token, const TokenEdit* of_path, const TokenEdit* fixed) {
    x[token - begin] = edited(before[listed++], token, run, of_path, fixed);
  });
}

float RowEdits::edited(float x, int64_t token) const {
  const TokenEdit *of_path = nullptr, *fixed = nullptr;
  for_listed(token, 1, [&](int64_t, const TokenEdit* p, const TokenEdit* f) { of_path = p, fixed = f; });
  return edited(x, token, counted(token), of_path, fixed);
}

}  // namespace specdec
