// SPDX-License-Identifier: Apache-2.0
// In place of csrc/kernels_avx512.cpp: the same kernels for a processor with AVX2, on the intrinsics of
// AVX-512 that SIMD Everywhere writes in AVX2. `make test-avx512` compiles it.
#include "kernels.h"

#define SPECDEC_TARGET "avx512"
#define SPECDEC_AVX512
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX2_NATIVE  // the pragma does not set the compiler's macros
#define SIMDE_X86_FMA_NATIVE
#include <simde/x86/avx512.h>

// What SIMD Everywhere 0.7.4 lacks.
namespace lacking {

template <typename Number, int kSize = 64>
using Vector [[gnu::vector_size(kSize)]] = Number;

inline __m512 from_int32(__m512i a) {
  return __builtin_convertvector(reinterpret_cast<Vector<int32_t>>(a), Vector<float>);
}
inline __m512 from_uint32(__m512i a) {
  return __builtin_convertvector(reinterpret_cast<Vector<uint32_t>>(a), Vector<float>);
}
inline __m512i from_uint16(__m256i a) {
  const auto wide = __builtin_convertvector(reinterpret_cast<Vector<uint16_t, 32>>(a), Vector<uint32_t>);
  return reinterpret_cast<__m512i>(wide);
}
inline __m512i from_uint8(__m128i a) {
  const auto wide = __builtin_convertvector(reinterpret_cast<Vector<uint8_t, 16>>(a), Vector<uint32_t>);
  return reinterpret_cast<__m512i>(wide);
}
inline __m512i from_int8(__m128i a) {
  const auto wide = __builtin_convertvector(reinterpret_cast<Vector<int8_t, 16>>(a), Vector<int32_t>);
  return reinterpret_cast<__m512i>(wide);
}
inline __m512 from_half(__m256i a) {
  __m512 out;
  for (int i = 0; i < 16; ++i) out[i] = _cvtsh_ss(reinterpret_cast<Vector<uint16_t, 32>>(a)[i]);
  return out;
}
inline uint16_t less(__m512i a, __m512i b) { return simde_mm512_cmpgt_epi32_mask(b, a); }
inline __m512 quarters(__m512 a, __m512 b, int order) {
  __m512 out;
  for (int i = 0; i < 16; ++i) out[i] = (i < 8 ? a : b)[4 * (order >> i / 4 * 2 & 3) + i % 4];
  return out;
}
template <typename Fold>
float folded(__m512 a, Fold fold) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a[i] = fold(a[i], a[i + half]);
  return a[0];
}
inline float sum(__m512 a) {
  return folded(a, [](float x, float y) { return x + y; });
}
inline float largest(__m512 a) {
  return folded(a, [](float x, float y) { return x > y ? x : y; });
}

}  // namespace lacking

#define _mm512_cvtepi32_ps lacking::from_int32
#define _mm512_cvtepu32_ps lacking::from_uint32
#define _mm512_cvtepu16_epi32 lacking::from_uint16
#define _mm512_cvtepu8_epi32 lacking::from_uint8
#define _mm512_cvtepi8_epi32 lacking::from_int8
#define _mm512_cvtph_ps lacking::from_half
#define _mm512_cmplt_epi32_mask lacking::less
#define _mm512_shuffle_f32x4 lacking::quarters
#define _mm512_reduce_add_ps lacking::sum
#define _mm512_reduce_max_ps lacking::largest

#include "kernels_inl.h"
#pragma GCC pop_options

namespace specdec {
const Kernels* avx512_kernels() { return avx2_kernels() ? &kTable : nullptr; }
}  // namespace specdec
