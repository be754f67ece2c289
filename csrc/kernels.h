// SPDX-License-Identifier: Apache-2.0
// The vector kernels, one table for each instruction set. They work on chunks: up to kChunk float32 scores in
// L1, padded with -inf to a multiple of kGroup.
#pragma once

#include <cstdint>

#include "attention_kernels.h"
#include "random.h"

namespace specdec {

inline constexpr int64_t kGroup = 128;   // tokens a kernel step handles on the widest target
inline constexpr int64_t kChunk = 1024;  // tokens in L1 at a time
inline constexpr int64_t kBlock = 8192;  // tokens of one unit of parallel work; fixes the order of reductions

// The weight of a score x is 2^((x - max) * slope), and 0 below the cut and for NaN; or, `linear`, x itself,
// and 0 below 0.
struct Weight {
  float max = 0;
  float slope = 1.44269504f;  // log2(e) / temperature
  float cut = -__builtin_inff();
  bool linear = false;
};

struct Kernels {
  const char* name;

  // Conversions into a chunk.
  void (*from_bfloat16)(const uint16_t* in, float* out, int64_t n);
  void (*from_float16)(const uint16_t* in, float* out, int64_t n);
  // And back: out[i] = in[i] * scale in a dtype of 32 or 16 bits, to nearest, ties to even.
  void (*write)(const float* in, float scale, int64_t n, DType dtype, void* out);

  // Copies scores; those of tokens whose bit is not set become -inf, NaN stays. n is rounded up to whole
  // words. `in` may be `out`.
  void (*mask)(const float* in, float* out, int64_t n, const uint32_t* allowed);
  // Largest score; NaN is passed over and reported.
  float (*max)(const float* x, int64_t n, bool* has_nan);
  // Lowest index of a score equal to `value`, or -1.
  int64_t (*find)(const float* x, int64_t n, float value);
  // Sum of the weights, which may be linear.
  double (*sum)(const float* x, int64_t n, const Weight& w);
  // Sum of weight * log2(weight), for entropies.
  double (*sum_weighted_log2)(const float* x, int64_t n, const Weight& w);
  // The sum of the weights, and the race over them; `first` is the token of x[0] (a multiple of 4).
  double (*race)(const float* x, int64_t n, const Weight& w, const Stream& stream, int64_t first,
                 Leader& leader);
  // The race for more places than the first.
  void (*race_many)(const float* x, int64_t n, const Weight& w, const Stream& stream, int64_t first,
                    Leaders& leaders);
  // The residual [weight_p(x) - ratio * weight_q(y)]+: its sum, with or without the race over it. The weights
  // of q may be linear.
  double (*residual)(const float* x, const float* y, int64_t n, const Weight& p, const Weight& q,
                     float ratio);
  double (*residual_race)(const float* x, const float* y, int64_t n, const Weight& p, const Weight& q,
                          float ratio, const Stream& stream, int64_t first, Leader& leader);
  // Writes the scores >= bar, and NaNs, to out, which may be x, and returns how many.
  int64_t (*keep)(const float* x, int64_t n, float bar, float* out);
  // Sets bit i where x[i] > bar, or with `ties` where x[i] >= bar, of n / 32 words, and returns how many.
  int64_t (*flag)(const float* x, int64_t n, float bar, bool ties, uint32_t* bits);
  // 2^x of n non-positive numbers; n is a multiple of kGroup.
  void (*exp2)(const float* x, float* out, int64_t n);

  const AttentionKernels* attention;
};

// The best table this processor runs. SPECDEC_ISA = baseline | avx2 asks for a lesser one.
const Kernels& kernels();

const Kernels* baseline_kernels();
const Kernels* avx2_kernels();    // null where not compiled in
const Kernels* avx512_kernels();  // null where not compiled in
const Kernels* neon_kernels();    // null where not compiled in

}  // namespace specdec
