// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace specdec {
namespace {

constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kWords = kChunk / 32;  // of the bits of a chunk

// The likeliest tokens so far: by score, and the lower token first where scores are equal.
class Likeliest {
 public:
  explicit Likeliest(int64_t most = 0) : most_(most) {}

  // Scores below are not among them.
  float bar() const { return count_ < most_ ? -kInf : most_ > 0 ? scores_[most_ - 1] : kInf; }
  int64_t count() const { return count_; }
  int64_t token(int64_t i) const { return tokens_[i]; }
  float score(int64_t i) const { return scores_[i]; }

  void offer(float score, int64_t token) {
    int64_t i = count_ < most_ ? count_++ : most_;
    if (i == most_ && !before(score, token, --i)) return;
    for (; i > 0 && before(score, token, i - 1); --i) {
      scores_[i] = scores_[i - 1];
      tokens_[i] = tokens_[i - 1];
    }
    scores_[i] = score;
    tokens_[i] = token;
  }

 private:
  bool before(float score, int64_t token, int64_t i) const {
    return score > scores_[i] || (score == scores_[i] && token < tokens_[i]);
  }

  int64_t most_, count_ = 0;
  float scores_[kMostTop];
  int64_t tokens_[kMostTop];
};

// The lowest score with a probability above 0, where the law is no point.
float least_of(const Law& law) { return std::max(law.weight.cut, -std::numeric_limits<float>::max()); }

}  // namespace

Report::Report(int64_t requests, int64_t width, float* out_logprobs, const specdec_logprobs* logprobs,
               const specdec_masks* masks)
    : requests_(requests), width_(width), out_logprobs_(out_logprobs), logprobs_(logprobs), masks_(masks) {
  if (masks && !masks->out_bits) kept_.resize(requests * width);
}

void Report::clear(int64_t b, int64_t vocab) {
  const auto fill = [&](auto* out, int64_t size, auto nothing) {
    if (out) std::fill(out + b * width_ * size, out + (b + 1) * width_ * size, nothing);
  };
  fill(out_logprobs_, 1, kNoNumber);
  if (logprobs_) {
    fill(logprobs_->out_top_logprobs, logprobs_->top, kNoNumber);
    fill(logprobs_->out_top_tokens, logprobs_->top, int64_t{-1});
    fill(logprobs_->out_ranks, 1, 0);
    fill(logprobs_->out_chosen_logprobs, logprobs_->chosen_count, kNoNumber);
  }
  if (masks_) {
    fill(masks_->out_bits, (vocab + 31) / 32, 0u);
    fill(masks_->out_counts, 1, 0);
    fill(masks_->out_mass, 1, kNoNumber);
  }
}

void Report::emit(Worker& worker, int64_t b, int64_t i, int64_t token, const Law& p,
                  const Sampling& sampling) {
  const int64_t place = b * width_ + i;
  if (logprobs_ && logprobs_->kind != SPECDEC_LAW_PROCESSED) {
    Row row = p.reader.row;
    row.bitmask = nullptr;
    row.edits = nullptr;
    Sampling plain;
    if (logprobs_->kind == SPECDEC_LAW_TEMPERATURE && !sampling.greedy())
      plain.temperature = sampling.temperature;
    const Law law = law_of(worker, row, plain);
    if (out_logprobs_) out_logprobs_[place] = static_cast<float>(law.logprob(token));
    write_likeliest(worker, place, token, law);
  } else {
    if (out_logprobs_) out_logprobs_[place] = static_cast<float>(p.logprob(token));
    if (logprobs_) write_likeliest(worker, place, token, p);
  }
  if (masks_) write_mask(worker, place, p);
}

// One pass, in which most chunks cost no more than their maximum.
void Report::write_likeliest(Worker& worker, int64_t place, int64_t token, const Law& law) {
  const specdec_logprobs& out = *logprobs_;
  const int64_t b = place / width_;
  for (int64_t j = 0; j < out.chosen_count; ++j) {
    const int64_t x = out.chosen[b * out.chosen_count + j];
    if (x >= 0 && x < law.reader.row.vocab)
      out.out_chosen_logprobs[place * out.chosen_count + j] = static_cast<float>(law.logprob(x));
  }
  if (law.point >= 0) {
    out.out_ranks[place] = token == law.point ? 1 : 2;
    if (out.top == 0) return;
    out.out_top_tokens[place * out.top] = law.point;
    out.out_top_logprobs[place * out.top] = 0;
    return;
  }
  struct alignas(64) Part {
    Likeliest likeliest;
    int64_t above = 0;
  };
  const float least = least_of(law), score = law.reader.score(token);
  const bool possible = score >= least;
  std::vector<Part> parts(worker.slots(), Part{Likeliest(out.top)});
  for_chunks(worker, law.reader, [&](const float* x, int64_t n, int64_t begin, int64_t, int slot) {
    Part& part = parts[slot];
    bool has_nan = false;
    const float max = kernels().max(x, n, &has_nan);
    if (!(max >= least)) return;
    uint32_t bits[kWords];
    if (!possible)
      part.above += kernels().flag(x, n, least, true, bits);
    else if (max > score)
      part.above += kernels().flag(x, n, score, false, bits);
    const float bar = std::max(least, part.likeliest.bar());
    if (!(max >= bar)) return;
    kernels().flag(x, n, bar, true, bits);
    for (int64_t word = 0; word < n / 32; ++word)
      for (uint32_t rest = bits[word]; rest; rest &= rest - 1) {
        const int64_t i = word * 32 + __builtin_ctz(rest);
        part.likeliest.offer(x[i], begin + i);
      }
  });
  Part all{Likeliest(out.top)};
  for (const Part& part : parts) {
    all.above += part.above;
    for (int64_t i = 0; i < part.likeliest.count(); ++i)
      all.likeliest.offer(part.likeliest.score(i), part.likeliest.token(i));
  }
  out.out_ranks[place] = static_cast<int32_t>(1 + all.above);
  for (int64_t i = 0; i < all.likeliest.count(); ++i) {
    out.out_top_tokens[place * out.top + i] = all.likeliest.token(i);
    out.out_top_logprobs[place * out.top + i] =
        static_cast<float>(law.log2_p_of(all.likeliest.score(i)) * std::numbers::ln2);
  }
}

void Report::write_mask(Worker& worker, int64_t place, const Law& p) {
  const int64_t vocab = p.reader.row.vocab, words = (vocab + 31) / 32;
  uint32_t* out = masks_->out_bits ? masks_->out_bits + place * words : nullptr;
  const float least = least_of(p);
  if (!kept_.empty()) kept_[place] = {p.reader, least, p.point};
  masks_->out_mass[place] = 1;
  if (p.point >= 0) {
    masks_->out_counts[place] = 1;
    if (out) out[p.point >> 5] = 1u << (p.point & 31);
    return;
  }
  std::vector<int64_t> counts(blocks_of(vocab));
  for_chunks(worker, p.reader, [&](const float* x, int64_t n, int64_t begin, int64_t block, int) {
    uint32_t bits[kWords];
    counts[block] += kernels().flag(x, n, least, true, bits);
    if (out) std::memcpy(out + begin / 32, bits, std::min(n / 32, words - begin / 32) * sizeof(uint32_t));
  });
  int64_t count = 0;
  for (int64_t part : counts) count += part;
  masks_->out_counts[place] = static_cast<int32_t>(count);
  if (p.weight.cut == -kInf) return;
  double whole = p.whole;
  if (!(whole > 0)) whole = sum_of(worker, p.reader, Weight{p.weight.max, p.weight.slope, -kInf});
  masks_->out_mass[place] = static_cast<float>(std::min(std::exp2(p.log2_mass) / whole, 1.0));
}

void Report::list_ids(int threads, int32_t* status) const {
  if (!masks_ || masks_->out_bits) return;
  const specdec_masks& out = *masks_;
  const int64_t places = requests_ * width_;
  out.out_offsets[0] = 0;
  for (int64_t place = 0; place < places; ++place) {
    out.out_offsets[place + 1] = out.out_offsets[place] + out.out_counts[place];
    if (out.out_counts[place] > 0 && out.out_offsets[place + 1] > out.capacity)
      status[place / width_] |= SPECDEC_STATUS_OVERFLOW;
  }
  const int64_t total = out.out_offsets[places];
  if (total < out.capacity) std::fill(out.out_ids + total, out.out_ids + out.capacity, -1);
  Team team(threads);
  team.items(places, 1, [&](Worker&, int64_t place) {
    int64_t at = out.out_offsets[place];
    const int64_t end = std::min(out.out_offsets[place + 1], out.capacity);
    const Kept& kept = kept_[place];
    if (kept.point >= 0 && at < end) {
      out.out_ids[at] = kept.point;
      return;
    }
    alignas(64) float buffer[kChunk];
    uint32_t bits[kWords];
    for (int64_t begin = 0; at < end; begin += kChunk) {
      const int64_t n = std::min(kChunk, kept.reader.row.vocab - begin);
      kernels().flag(kept.reader.read(begin, n, buffer), padded(n), kept.least, true, bits);
      for (int64_t word = 0; word < padded(n) / 32; ++word)
        for (uint32_t rest = bits[word]; rest && at < end; rest &= rest - 1)
          out.out_ids[at++] = begin + word * 32 + __builtin_ctz(rest);
    }
  });
}

}  // namespace specdec
