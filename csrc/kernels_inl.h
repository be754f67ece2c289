// SPDX-License-Identifier: Apache-2.0
// The kernels, written once. Each kernels_<target>.cpp sets the compiler's target and includes this.
// Only this project's own inline code may appear here: a template of the standard library compiled for a wide
// target could be the copy that the linker keeps for all.

namespace specdec {
namespace {

#include "simd.h"

inline constexpr int kVectors = 8;  // handled together, to keep enough independent work in flight
inline constexpr int kStep = kVectors * kLanes;
static_assert(kGroup % kStep == 0);

// Of base-2 logarithms: 2^t is 0 in float32 well before, and `scale` can still take it.
inline constexpr float kLeastExponent = -160.0f;

// 2^t for t in [kLeastExponent, 0].
inline F exp2_bounded(F t) {
  const F n = round(t), f = sub(t, n);
  F p = fma(set(1.535336188319500e-4f), f, set(1.339887440266574e-3f));
  p = fma(p, f, set(9.618437357674640e-3f));
  p = fma(p, f, set(5.550332471162809e-2f));
  p = fma(p, f, set(2.402264791363012e-1f));
  p = fma(p, f, set(6.931472028550421e-1f));
  return scale(fma(p, f, set(1.0f)), n);
}

// 2^t for t <= 0; 0 for -inf and NaN.
inline F exp2_negative(F t) { return exp2_bounded(max(t, set(kLeastExponent))); }

struct Weigh {
  F max_score, slope, cut;
  bool has_cut;

  explicit Weigh(const Weight& w)
      : max_score(set(w.max)), slope(set(w.slope)), cut(set(w.cut)), has_cut(w.cut > -__builtin_inff()) {}
  F log2(F x) const { return mul(sub(x, max_score), slope); }
  F operator()(F x) const {
    const F e = exp2_negative(log2(x));
    return has_cut ? zero_unless_at_least(e, x, cut) : e;
  }
  // No score of this step passes the cut.
  bool none(const float* x) const {
    if (!has_cut) return false;
    unsigned any = 0;
    for (int j = 0; j < kVectors; ++j) any |= at_least(load(x + j * kLanes), cut);
    return any == 0;
  }
};

// Probabilities, which are their own weights.
struct Linear {
  F operator()(F x) const { return max(x, set(0.0f)); }
  bool none(const float*) const { return false; }
};

// The random words of a stream, kStep tokens at a time and in their order.
class Noise {
 public:
#if defined(SPECDEC_AVX512) || defined(SPECDEC_AVX2)
  explicit Noise(const Stream& stream) {
    // What the first two rounds have in common in all lanes.
    const uint64_t b = static_cast<uint64_t>(kPhiloxM1) * stream.word2;
    const uint32_t c0 = static_cast<uint32_t>(b >> 32) ^ stream.word1 ^ stream.key0;
    const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * c0;
    uint32_t k0 = stream.key0, k1 = stream.key1;
    for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
      keys_[round][0] = set(k0);
      keys_[round][1] = set(k1);
    }
    word0_ = stream.word0;
    third_ = set(stream.word3);
    second_[0] = set(static_cast<uint32_t>(b));
    second_[1] = set(static_cast<uint32_t>(a >> 32));
    second_[2] = set(static_cast<uint32_t>(a));
  }

  void words(uint32_t index, U out[kVectors]) const {
    const uint32_t word0 = word0_ + index;
    const U m0 = set(kPhiloxM0), m1 = set(kPhiloxM1);
    constexpr int kChains = kVectors / 2;
    U x[kChains][4];
    for (int chain = 0; chain < kChains; ++chain) {
      U* c = x[chain];
      const U product0 = multiply(counters(word0 + chain * (kLanes / 2)), m0);
      const U product1 = multiply(exclusive_or(high(product0), third_, keys_[0][1]), m1);
      c[0] = exclusive_or(high(product1), second_[0], keys_[1][0]);
      c[1] = product1;
      c[2] = exclusive_or(second_[1], product0, keys_[1][1]);
      c[3] = second_[2];
    }
    for (int round = 2; round < 10; ++round)
      for (U* c : x) {
        const U product0 = multiply(c[0], m0), product1 = multiply(c[2], m1);
        c[0] = exclusive_or(high(product1), c[1], keys_[round][0]);
        c[2] = exclusive_or(high(product0), c[3], keys_[round][1]);
        c[1] = product1;
        c[3] = product0;
      }
    for (int chain = 0; chain < kChains; ++chain) join(x[chain], out + 2 * chain);
  }

 private:
  U keys_[10][2], third_, second_[3];
  uint32_t word0_;
#elif defined(SPECDEC_NEON)
  explicit Noise(const Stream& stream) : stream_(stream) {}

  // Four indices at a time: c[i] holds word i of all four.
  void words(uint32_t index, U out[kVectors]) const {
    for (int j = 0; j < kVectors; j += kLanes) {
      U c[4] = {counters(stream_.word0 + index + j), set(stream_.word1), set(stream_.word2),
                set(stream_.word3)};
      uint32_t k0 = stream_.key0, k1 = stream_.key1;
      for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        const Product a = multiply(c[0], kPhiloxM0), b = multiply(c[2], kPhiloxM1);
        c[0] = b.high ^ c[1] ^ set(k0);
        c[1] = b.low;
        c[2] = a.high ^ c[3] ^ set(k1);
        c[3] = a.low;
      }
      F rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = reinterpret_cast<F>(c[i]);
      transpose(rows);
      for (int i = 0; i < kLanes; ++i) out[j + i] = reinterpret_cast<U>(rows[i]);
    }
  }

 private:
  const Stream& stream_;
#else
  explicit Noise(const Stream& stream) : stream_(stream) {}

  void words(uint32_t index, U out[kVectors]) const {
    for (int j = 0; j < kVectors; ++j) {
      const Words w = philox(stream_, index + j);
      out[j] = U{w.word[0], w.word[1], w.word[2], w.word[3]};
    }
  }

 private:
  const Stream& stream_;
#endif
};

// A random word w stands for the uniform (w + 1/2) 2^-32. The margin covers roundings where keys are bounded.
inline constexpr double kWordUnit = (1 - 1e-5) * 0x1p-32;

// Settles the lanes of one vector that may lead; the most promising one first, so that few need a logarithm.
[[gnu::noinline]] void settle(F weights, U words, unsigned lanes, int64_t first, Leader& leader) {
  float weight[kLanes];
  uint32_t word[kLanes];
  store(weight, weights);
  store(word, words);
  int best = 0;
  float best_ratio = -1;
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    const float ratio = weight[i] / (static_cast<float>(word[i]) + 0.5f);
    if (ratio > best_ratio) best_ratio = ratio, best = i;
  }
  leader.offer(weight[best] / exponential(word[best]), first + best);
  for (unsigned rest = lanes & ~(1u << best); rest; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    if (weight[i] > leader.score * kWordUnit * (word[i] + 0.5))
      leader.offer(weight[i] / exponential(word[i]), first + i);
  }
}

[[gnu::noinline]] void settle(F weights, U words, unsigned lanes, int64_t first, Leaders& leaders) {
  float weight[kLanes];
  uint32_t word[kLanes];
  store(weight, weights);
  store(word, words);
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    if (weight[i] > leaders.least * kWordUnit * (word[i] + 0.5))
      leaders.offer(weight[i] / exponential(word[i]), first + i);
  }
}

// Races kStep weights. A key is at least its uniform v, so a weight below bar * v cannot lead.
template <class Leading>
inline void race_step(const F weights[kVectors], const Noise& noise, int64_t first, Leading& leader) {
  const F zero = set(0.0f);
  unsigned any = 0;
  for (int j = 0; j < kVectors; ++j) any |= greater(weights[j], zero);
  if (!any) return;
  U words[kVectors];
  noise.words(static_cast<uint32_t>(first >> 2), words);
  const F bar = set(static_cast<float>(leader.bar() * kWordUnit));
  unsigned lanes[kVectors];
  any = 0;
  for (int j = 0; j < kVectors; ++j)
    any |= lanes[j] = greater(weights[j], mul(bar, add(to_float(words[j]), set(0.5f))));
  if (!any) return;
  for (int j = 0; j < kVectors; ++j)
    if (lanes[j]) settle(weights[j], words[j], lanes[j], first + j * kLanes, leader);
}

template <F (*convert)(const uint16_t*)>
void convert_halves(const uint16_t* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, convert(in + i));
  if (i == n) return;
  uint16_t rest[kLanes] = {};
  float values[kLanes];
  for (int64_t j = i; j < n; ++j) rest[j - i] = in[j];
  store(values, convert(rest));
  for (int64_t j = i; j < n; ++j) out[j] = values[j - i];
}

inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t to_float16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (bits < 0x38800000u) {  // below the normal numbers: adding 0.5 rounds to units of 2^-24
    float small;
    __builtin_memcpy(&small, &bits, sizeof small);
    small += 0.5f;
    __builtin_memcpy(&bits, &small, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xFFFu + ((bits >> 13) & 1u)) >> 13));
}

void write(const float* in, float scale, int64_t n, DType dtype, void* out) {
  if (dtype == SPECDEC_FLOAT32)
    for (int64_t i = 0; i < n; ++i) static_cast<float*>(out)[i] = in[i] * scale;
  else if (dtype == SPECDEC_BFLOAT16)
    for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(out)[i] = to_bfloat16(in[i] * scale);
  else
    for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(out)[i] = to_float16(in[i] * scale);
}

void mask(const float* in, float* out, int64_t n, const uint32_t* allowed) {
  for (int64_t i = 0; i < n; i += 32)
    for (int j = 0; j < 32; j += kLanes) store(out + i + j, only(load(in + i + j), allowed[i / 32] >> j));
}

float max_score(const float* x, int64_t n, bool* has_nan) {
  F best[4] = {set(-__builtin_inff()), set(-__builtin_inff()), set(-__builtin_inff()),
               set(-__builtin_inff())};
  unsigned nan = 0;
  for (int64_t i = 0; i < n; i += kStep)
    for (int j = 0; j < kVectors; ++j) {
      const F v = load(x + i + j * kLanes);
      best[j % 4] = max(v, best[j % 4]);
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

// Asks for the step one chunk ahead while this one is computed; rows are read in order, and asking too far is
// harmless.
inline void prefetch_step(const float* x) {
  for (int i = 0; i < kStep; i += 16) __builtin_prefetch(x + kChunk + i);
}

inline double total(const F sums[4]) { return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3]))); }

template <class Weights>
inline double sum_with(const float* x, int64_t n, const Weights& weigh) {
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; i += kStep) {
    prefetch_step(x + i);
    if (weigh.none(x + i)) continue;
    for (int j = 0; j < kVectors; ++j) sums[j % 4] = add(sums[j % 4], weigh(load(x + i + j * kLanes)));
  }
  return total(sums);
}

double sum(const float* x, int64_t n, const Weight& w) {
  return w.linear ? sum_with(x, n, Linear()) : sum_with(x, n, Weigh(w));
}

double sum_weighted_log2(const float* x, int64_t n, const Weight& w) {
  const Weigh weigh(w);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; i += kStep)
    for (int j = 0; j < kVectors; ++j) {
      const F v = load(x + i + j * kLanes);
      sums[j % 4] = fma(weigh(v), max(weigh.log2(v), set(kLeastExponent)), sums[j % 4]);
    }
  return total(sums);
}

double race(const float* x, int64_t n, const Weight& w, const Stream& stream, int64_t first, Leader& leader) {
  const Weigh weigh(w);
  const Noise noise(stream);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; i += kStep) {
    prefetch_step(x + i);
    if (weigh.none(x + i)) continue;
    F weights[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      weights[j] = weigh(load(x + i + j * kLanes));
      sums[j % 4] = add(sums[j % 4], weights[j]);
    }
    race_step(weights, noise, first + i, leader);
  }
  return total(sums);
}

void race_many(const float* x, int64_t n, const Weight& w, const Stream& stream, int64_t first,
               Leaders& leaders) {
  const Weigh weigh(w);
  const Noise noise(stream);
  for (int64_t i = 0; i < n; i += kStep) {
    prefetch_step(x + i);
    if (weigh.none(x + i)) continue;
    F weights[kVectors];
    for (int j = 0; j < kVectors; ++j) weights[j] = weigh(load(x + i + j * kLanes));
    race_step(weights, noise, first + i, leaders);
  }
}

// The sum of the residual; `race` is shown its weights.
template <class Weights, class Race>
inline double residual_with(const float* x, const float* y, int64_t n, const Weigh& p, const Weights& q,
                            float ratio, const Race& race) {
  const F minus_ratio = set(-ratio);
  F sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; i += kStep) {
    prefetch_step(x + i);
    prefetch_step(y + i);
    if (p.none(x + i)) continue;
    F weights[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      weights[j] = max(fma(minus_ratio, q(load(y + i + j * kLanes)), p(load(x + i + j * kLanes))), set(0.0f));
      sums[j % 4] = add(sums[j % 4], weights[j]);
    }
    race(weights, i);
  }
  return total(sums);
}

double residual(const float* x, const float* y, int64_t n, const Weight& p, const Weight& q, float ratio) {
  const auto no_race = [](const F*, int64_t) {};
  return q.linear ? residual_with(x, y, n, Weigh(p), Linear(), ratio, no_race)
                  : residual_with(x, y, n, Weigh(p), Weigh(q), ratio, no_race);
}

double residual_race(const float* x, const float* y, int64_t n, const Weight& p, const Weight& q, float ratio,
                     const Stream& stream, int64_t first, Leader& leader) {
  const Noise noise(stream);
  const auto race = [&](const F* weights, int64_t i) { race_step(weights, noise, first + i, leader); };
  return q.linear ? residual_with(x, y, n, Weigh(p), Linear(), ratio, race)
                  : residual_with(x, y, n, Weigh(p), Weigh(q), ratio, race);
}

int64_t keep(const float* x, int64_t n, float bar, float* out) {
  const F b = set(bar);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kStep) {
    unsigned lanes[kVectors], any = 0;
    for (int j = 0; j < kVectors; ++j) any |= lanes[j] = not_less(load(x + i + j * kLanes), b);
    if (!any) continue;
    for (int j = 0; j < kVectors; ++j)
      if (lanes[j]) count += append(out + count, load(x + i + j * kLanes), lanes[j]);
  }
  return count;
}

template <unsigned (*passes)(F, F)>
int64_t flag_where(const float* x, int64_t n, F bar, uint32_t* bits) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 32) {
    for (int j = 0; j < 32; j += 16) __builtin_prefetch(x + kChunk + i + j);
    uint32_t word = 0;
    for (int j = 0; j < 32; j += kLanes) word |= passes(load(x + i + j), bar) << j;
    count += __builtin_popcount(word);
    bits[i / 32] = word;
  }
  return count;
}

int64_t flag(const float* x, int64_t n, float bar, bool ties, uint32_t* bits) {
  return ties ? flag_where<at_least>(x, n, set(bar), bits) : flag_where<greater>(x, n, set(bar), bits);
}

void exp2_all(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, exp2_negative(load(x + i)));
}

#include "attention_inl.h"

constexpr Kernels kTable = {SPECDEC_TARGET,
                            convert_halves<from_bfloat16>,
                            convert_halves<from_float16>,
                            write,
                            mask,
                            max_score,
                            find,
                            sum,
                            sum_weighted_log2,
                            race,
                            race_many,
                            residual,
                            residual_race,
                            keep,
                            flag,
                            exp2_all,
                            &kAttention};

}  // namespace
}  // namespace specdec
