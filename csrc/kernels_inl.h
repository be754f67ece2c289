// The kernels, written once. Each kernels_<target>.cpp sets the compiler's target and includes this.
// Only this project's own inline code may appear here: a template of the standard library compiled for a wide target
// could be the copy that the linker keeps for all.

namespace specdec {
namespace {

#include "simd.h"

inline constexpr int kStep = 4 * kLanes;  // one Philox call per lane gives four tokens
static_assert(kGroup % kStep == 0);

// exp(z) for z <= 0; 0 for -inf and NaN. Cody-Waite reduction, degree 6.
inline F exp_negative(F z) {
  z = max(z, set(-110.0f));
  const F n = round(mul(z, set(1.44269504f)));
  F f = fma(n, set(-0.693359375f), z);
  f = fma(n, set(2.12194440e-4f), f);
  F p = fma(set(1.9875691500e-4f), f, set(1.3981999507e-3f));
  p = fma(p, f, set(8.3334519073e-3f));
  p = fma(p, f, set(4.1665795894e-2f));
  p = fma(p, f, set(1.6666665459e-1f));
  p = fma(p, f, set(5.0000001201e-1f));
  p = fma(p, mul(f, f), f);
  return scale(add(p, set(1.0f)), n);
}

struct Weigh {
  F max_score, inv_temperature, cut;
  bool has_cut;

  explicit Weigh(const Weight& w)
      : max_score(set(w.max)), inv_temperature(set(w.inv_temperature)), cut(set(w.cut)), has_cut(w.cut > -__builtin_inff()) {}
  F operator()(F x) const {
    const F e = exp_negative(mul(sub(x, max_score), inv_temperature));
    return has_cut ? zero_unless_at_least(e, x, cut) : e;
  }
  // No score of this step passes the cut.
  bool none(const float* x) const {
    if (!has_cut) return false;
    unsigned any = 0;
    for (int j = 0; j < 4; ++j) any |= at_least(load(x + j * kLanes), cut);
    return any == 0;
  }
};

// The random words of kStep tokens in a row, in their order.
inline void random_words(const Stream& stream, uint32_t word0, U words[4]) {
  // The first round's second product and the second round's first one are the same in every lane.
  const uint64_t b = static_cast<uint64_t>(kPhiloxM1) * stream.word2;
  U high, low;
  multiply(add(set(word0), iota()), kPhiloxM0, high, low);
  const uint32_t c0 = static_cast<uint32_t>(b >> 32) ^ stream.word1 ^ stream.key0;
  U c2 = exclusive_or(high, set(stream.word3), set(stream.key1)), c3 = low;
  uint32_t k0 = stream.key0 + kPhiloxW0, k1 = stream.key1 + kPhiloxW1;
  const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * c0;
  multiply(c2, kPhiloxM1, high, low);
  U x0 = exclusive_or(high, set(static_cast<uint32_t>(b)), set(k0)), x1 = low;
  U x2 = exclusive_or(set(static_cast<uint32_t>(a >> 32)), c3, set(k1)), x3 = set(static_cast<uint32_t>(a));
  for (int round = 2; round < 10; ++round) {
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
    U high0, low0, high1, low1;
    multiply(x0, kPhiloxM0, high0, low0);
    multiply(x2, kPhiloxM1, high1, low1);
    x0 = exclusive_or(high1, x1, set(k0));
    x1 = low1;
    x2 = exclusive_or(high0, x3, set(k1));
    x3 = low0;
  }
  words[0] = x0;
  words[1] = x1;
  words[2] = x2;
  words[3] = x3;
  interleave(words);
}

// Settles the lanes that may lead; the most promising one first, so that few need a logarithm.
[[gnu::noinline]] void settle(const F weights[4], const U words[4], uint64_t lanes, int64_t first, Leader& leader) {
  float weight[kStep];
  uint32_t word[kStep];
  for (int j = 0; j < 4; ++j) {
    store(weight + j * kLanes, weights[j]);
    store(word + j * kLanes, words[j]);
  }
  int best = __builtin_ctzll(lanes);
  float best_ratio = -1;
  for (uint64_t rest = lanes; rest; rest &= rest - 1) {
    const int i = __builtin_ctzll(rest);
    const float ratio = weight[i] / (static_cast<float>(word[i]) + 0.5f);
    if (ratio > best_ratio) best_ratio = ratio, best = i;
  }
  leader.offer(weight[best] / exponential(word[best]), first + best);
  for (uint64_t rest = lanes & ~(uint64_t{1} << best); rest; rest &= rest - 1) {
    const int i = __builtin_ctzll(rest);
    if (weight[i] > leader.score * (1 - 1e-5) * (word[i] + 0.5) * 0x1p-32)
      leader.offer(weight[i] / exponential(word[i]), first + i);
  }
}

// Races kStep weights. A key is at least its uniform v, so a weight below leader * v cannot win.
inline void race_step(const F weights[4], const Stream& stream, int64_t first, Leader& leader) {
  const F zero = set(0.0f);
  if (!(greater(weights[0], zero) | greater(weights[1], zero) | greater(weights[2], zero) | greater(weights[3], zero)))
    return;
  U words[4];
  random_words(stream, static_cast<uint32_t>(first >> 2), words);
  const F bar = set(static_cast<float>(leader.score * ((1 - 1e-5) * 0x1p-32)));
  uint64_t lanes = 0;
  for (int j = 0; j < 4; ++j)
    lanes |= static_cast<uint64_t>(greater(weights[j], mul(bar, add(to_float(words[j]), set(0.5f))))) << (j * kLanes);
  if (lanes) settle(weights, words, lanes, first, leader);
}

void convert_bfloat16(const uint16_t* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, from_bfloat16(in + i));
  if (i < n) {
    uint16_t rest[kLanes] = {};
    float values[kLanes];
    for (int64_t j = i; j < n; ++j) rest[j - i] = in[j];
    store(values, from_bfloat16(rest));
    for (int64_t j = i; j < n; ++j) out[j] = values[j - i];
  }
}

void convert_float16(const uint16_t* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, from_float16(in + i));
  if (i < n) {
    uint16_t rest[kLanes] = {};
    float values[kLanes];
    for (int64_t j = i; j < n; ++j) rest[j - i] = in[j];
    store(values, from_float16(rest));
    for (int64_t j = i; j < n; ++j) out[j] = values[j - i];
  }
}

float max_score(const float* x, int64_t n, bool* has_nan) {
  F best[4] = {set(-__builtin_inff()), set(-__builtin_inff()), set(-__builtin_inff()), set(-__builtin_inff())};
  unsigned nan = 0;
  for (int64_t i = 0; i < n; i += kStep)
    for (int j = 0; j < 4; ++j) {
      const F v = load(x + i + j * kLanes);
      best[j] = max(v, best[j]);
      nan |= is_nan(v);
    }
  *has_nan |= nan != 0;
  return reduce_max(max(max(best[0], best[1]), max(best[2], best[3])));
}

int64_t find(const float* x, int64_t n, float value) {
  const F v = set(value);
  for (int64_t i = 0; i < n; i += kLanes)
    if (const unsigned lanes = equal(load(x + i), v)) return i + __builtin_ctz(lanes);
  return -1;
}

inline double total(const F sums[4]) { return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3]))); }

double sum(const float* x, int64_t n, const Weight& w) {
  const Weigh weigh(w);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; i += kStep) {
    if (weigh.none(x + i)) continue;
    for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], weigh(load(x + i + j * kLanes)));
  }
  return total(sums);
}

double sum_weighted_log(const float* x, int64_t n, const Weight& w) {
  const Weigh weigh(w);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; i += kStep)
    for (int j = 0; j < 4; ++j) {
      const F v = load(x + i + j * kLanes);
      const F z = max(mul(sub(v, weigh.max_score), weigh.inv_temperature), set(-110.0f));
      sums[j] = fma(weigh(v), z, sums[j]);
    }
  return total(sums);
}

double race(const float* x, int64_t n, const Weight& w, const Stream& stream, int64_t first, Leader& leader) {
  const Weigh weigh(w);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; i += kStep) {
    if (weigh.none(x + i)) continue;
    F weights[4];
    for (int j = 0; j < 4; ++j) {
      weights[j] = weigh(load(x + i + j * kLanes));
      sums[j] = add(sums[j], weights[j]);
    }
    race_step(weights, stream, first + i, leader);
  }
  return total(sums);
}

inline void residual_step(const float* x, const float* y, const Weigh& p, const Weigh& q, F minus_ratio, F out[4]) {
  for (int j = 0; j < 4; ++j)
    out[j] = max(fma(minus_ratio, q(load(y + j * kLanes)), p(load(x + j * kLanes))), set(0.0f));
}

double residual(const float* x, const float* y, int64_t n, const Weight& wp, const Weight& wq, float ratio) {
  const Weigh p(wp), q(wq);
  const F minus_ratio = set(-ratio);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)}, weights[4];
  for (int64_t i = 0; i < n; i += kStep) {
    if (p.none(x + i)) continue;
    residual_step(x + i, y + i, p, q, minus_ratio, weights);
    for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], weights[j]);
  }
  return total(sums);
}

double residual_race(const float* x, const float* y, int64_t n, const Weight& wp, const Weight& wq, float ratio,
                     const Stream& stream, int64_t first, Leader& leader) {
  const Weigh p(wp), q(wq);
  const F minus_ratio = set(-ratio);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)}, weights[4];
  for (int64_t i = 0; i < n; i += kStep) {
    if (p.none(x + i)) continue;
    residual_step(x + i, y + i, p, q, minus_ratio, weights);
    for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], weights[j]);
    race_step(weights, stream, first + i, leader);
  }
  return total(sums);
}

int64_t keep(const float* x, int64_t n, float bar, float* out) {
  const F b = set(bar);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kStep) {
    unsigned lanes[4], any = 0;
    for (int j = 0; j < 4; ++j) any |= lanes[j] = not_less(load(x + i + j * kLanes), b);
    if (!any) continue;
    for (int j = 0; j < 4; ++j)
      if (lanes[j]) count += append(out + count, load(x + i + j * kLanes), lanes[j]);
  }
  return count;
}

void exp_all(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, exp_negative(load(x + i)));
}

constexpr Kernels kTable = {SPECDEC_TARGET, convert_bfloat16, convert_float16, max_score, find, sum, sum_weighted_log,
                            race,           residual,         residual_race,   keep,      exp_all};

}  // namespace
}  // namespace specdec
