// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

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

// At most the nth largest score, where `maxima` are of chunks.
float nth_largest(std::vector<float> maxima, int64_t n) {
  if (n == 0) return kInf;
  if (n > static_cast<int64_t>(maxima.size())) return -kInf;
  std::nth_element(maxima.begin(), maxima.begin() + n - 1, maxima.end(), std::greater<float>());
  return maxima[n - 1];
}

}  // namespace

// The likeliest tokens of a row, and how many are likelier than the emitted one.
class Report::Ranking {
 public:
  struct alignas(64) Part {
    Likeliest likeliest;
    int64_t above = 0;
  };

  Ranking(const Law& law, int64_t token, int64_t top, int slots)
      : maxima_(law.reader.maxima), parts_(slots, Part{Likeliest(top)}) {
    const float score = law.reader.score(token);
    possible_ = score >= law.least();
    counted_ = possible_ ? score : law.least();
    listed_ = std::max(law.least(), nth_largest(maxima_, top));
  }

  // Chunks without a score at or above it need not be read.
  float bar() const { return std::min(counted_, listed_); }

  // `x`: as Reader::flag takes it.
  void read(const Reader& reader, const float* x, bool given, int64_t n, int64_t begin, int slot) {
    Part& part = parts_[slot];
    const float max = maxima_[begin / kChunk];
    uint32_t bits[kWords];
    if (max > counted_ || !possible_)
      part.above += reader.flag(x, given, begin, n, counted_, !possible_, bits);
    const float bar = std::max(listed_, part.likeliest.bar());
    if (max < bar) return;
    reader.flag(x, given, begin, n, bar, true, bits);
    for (int64_t word = 0; word < padded(n) / 32; ++word)
      for (uint32_t rest = bits[word]; rest; rest &= rest - 1) {
        const int64_t token = begin + word * 32 + __builtin_ctz(rest);
        part.likeliest.offer(reader.score(token), token);
      }
  }

  Part whole() const {
    Part all = parts_[0];
    for (size_t slot = 1; slot < parts_.size(); ++slot) {
      const Part& part = parts_[slot];
      all.above += part.above;
      for (int64_t i = 0; i < part.likeliest.count(); ++i)
        all.likeliest.offer(part.likeliest.score(i), part.likeliest.token(i));
    }
    return all;
  }

 private:
  const std::vector<float>& maxima_;
  std::vector<Part> parts_;
  bool possible_;  // the emitted token
  float counted_;  // scores above are likelier; where it is not possible, those at it too
  float listed_;   // scores below are not among the likeliest
};

// The tokens of a row that cuts left.
class Report::Left {
 public:
  // `out` may be null.
  Left(const Law& law, uint32_t* out)
      : reader_(law.reader), least_(law.least()), out_(out), counts_(blocks_of(reader_.row.vocab)) {}

  float bar() const { return least_; }

  // `x`: as Reader::flag takes it.
  void read(const float* x, bool given, int64_t n, int64_t begin, int64_t block) {
    if (reader_.maxima[begin / kChunk] < least_) return;
    uint32_t bits[kWords];
    counts_[block] += reader_.flag(x, given, begin, n, least_, true, bits);
    if (out_) std::copy_n(bits, (n + 31) / 32, out_ + begin / 32);
  }

  int64_t count() const { return std::accumulate(counts_.begin(), counts_.end(), int64_t{0}); }

 private:
  const Reader& reader_;
  float least_;
  uint32_t* out_;
  std::vector<int64_t> counts_;
};

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
  Law other;
  const bool apart = logprobs_ && logprobs_->kind != SPECDEC_LAW_PROCESSED;
  if (apart) {
    Row row = p.reader.row;
    row.bitmask = nullptr;
    row.edits = nullptr;
    Sampling plain;
    if (logprobs_->kind == SPECDEC_LAW_TEMPERATURE && !sampling.greedy())
      plain.temperature = sampling.temperature;
    other = law_of(worker, row, plain);
  }
  const Law& law = apart ? other : p;
  std::optional<Ranking> ranking;
  std::optional<Left> left;
  if (logprobs_ && law.point < 0) ranking.emplace(law, token, logprobs_->top, worker.slots());
  if (masks_ && p.point < 0) left.emplace(p, bits_at(place, p.reader.row.vocab));
  if (apart && ranking) read(worker, law, &*ranking, nullptr);
  read(worker, p, !apart && ranking ? &*ranking : nullptr, left ? &*left : nullptr);

  if (out_logprobs_) out_logprobs_[place] = static_cast<float>(law.logprob(token));
  if (logprobs_) write_likeliest(place, token, law, ranking);
  if (masks_) write_mask(place, p, left);
}

// One pass, over the chunks that matter to either; both may be null.
void Report::read(Worker& worker, const Law& law, Ranking* ranking, Left* left) {
  const float bar = std::min(ranking ? ranking->bar() : kInf, left ? left->bar() : kInf);
  if (!ranking && !left) return;
  const Reader& reader = law.reader;
  const bool given = reader.lowers() && !(left && law.weight.cut == -kInf);
  for_unread_chunks(worker, reader, bar, [&](int64_t begin, int64_t n, int64_t block, int slot) {
    alignas(64) float buffer[kChunk];
    const float* x = given ? reader.read_given(begin, n, buffer) : reader.read(begin, n, buffer);
    if (ranking) ranking->read(reader, x, given, n, begin, slot);
    if (left) left->read(x, given, n, begin, block);
  });
}

void Report::write_likeliest(int64_t place, int64_t token, const Law& law,
                             const std::optional<Ranking>& ranking) {
  const specdec_logprobs& out = *logprobs_;
  const int64_t b = place / width_;
  for (int64_t j = 0; j < out.chosen_count; ++j) {
    const int64_t x = out.chosen[b * out.chosen_count + j];
    if (x >= 0 && x < law.reader.row.vocab)
      out.out_chosen_logprobs[place * out.chosen_count + j] = static_cast<float>(law.logprob(x));
  }
  if (!ranking) {
    out.out_ranks[place] = token == law.point ? 1 : 2;
    if (out.top == 0) return;
    out.out_top_tokens[place * out.top] = law.point;
    out.out_top_logprobs[place * out.top] = 0;
    return;
  }
  const Ranking::Part all = ranking->whole();
  out.out_ranks[place] = static_cast<int32_t>(1 + all.above);
  for (int64_t i = 0; i < all.likeliest.count(); ++i) {
    out.out_top_tokens[place * out.top + i] = all.likeliest.token(i);
    out.out_top_logprobs[place * out.top + i] =
        static_cast<float>(law.log2_p_of(all.likeliest.score(i)) * std::numbers::ln2);
  }
}

uint32_t* Report::bits_at(int64_t place, int64_t vocab) const {
  return masks_->out_bits ? masks_->out_bits + place * ((vocab + 31) / 32) : nullptr;
}

void Report::write_mask(int64_t place, const Law& p, const std::optional<Left>& left) {
  if (!kept_.empty()) kept_[place] = {p.reader, p.least(), p.point};
  masks_->out_counts[place] = left ? static_cast<int32_t>(left->count()) : 1;
  if (!left && masks_->out_bits) bits_at(place, p.reader.row.vocab)[p.point >> 5] = 1u << (p.point & 31);
  if (!masks_->out_mass) return;
  const bool cut = left && p.weight.cut > -kInf;
  masks_->out_mass[place] = cut ? static_cast<float>(std::min(std::exp2(p.log2_mass) / p.whole, 1.0)) : 1;
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
      if (kept.reader.maxima[begin / kChunk] < kept.least) continue;
      const int64_t n = std::min(kChunk, kept.reader.row.vocab - begin);
      kernels().flag(kept.reader.read(begin, n, buffer), padded(n), kept.least, true, bits);
      for (int64_t word = 0; word < padded(n) / 32; ++word)
        for (uint32_t rest = bits[word]; rest && at < end; rest &= rest - 1)
          out.out_ids[at++] = begin + word * 32 + __builtin_ctz(rest);
    }
  });
}

}  // namespace specdec
