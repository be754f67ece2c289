// SPDX-License-Identifier: Apache-2.0
// A dozen vector operations for the instruction set of the including file, which defines SPECDEC_TARGET and
// has set the compiler's target before this. F: kLanes floats, U: kLanes uint32. No include guard: included
// once by each target.

#if defined(SPECDEC_AVX512)

inline constexpr int kLanes = 16;
using F = __m512;
using U = __m512i;

inline F load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* out, F a) { _mm512_storeu_ps(out, a); }
inline void store(uint32_t* out, U a) { _mm512_storeu_si512(out, a); }
inline F set(float a) { return _mm512_set1_ps(a); }
inline U set(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2^n
inline F zero_unless_at_least(F value, F x, F bar) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bar, _CMP_GE_OQ), value);
}
inline unsigned at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline unsigned greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline unsigned equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline unsigned is_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
inline unsigned not_less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
// -inf outside `lanes`, but NaN where x is NaN.
inline F only(F x, unsigned lanes) {
  return _mm512_mask_min_ps(x, static_cast<__mmask16>(~lanes), set(-__builtin_inff()), x);
}
inline float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
inline double reduce_add(F a) { return _mm512_reduce_add_ps(a); }
inline F to_float(U a) { return _mm512_cvtepu32_ps(a); }
// Philox runs on 64-bit lanes of which the low half counts. Lanes hold the counters in an order that comes
// out straight after `join`.
inline U counters(uint32_t first) {
  return _mm512_add_epi32(set(first), _mm512_setr_epi32(0, 0, 4, 0, 1, 0, 5, 0, 2, 0, 6, 0, 3, 0, 7, 0));
}
inline U multiply(U a, U b) { return _mm512_mul_epu32(a, b); }
inline U high(U a) { return _mm512_srli_epi64(a, 32); }
inline U exclusive_or(U a, U b, U c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
inline void join(const U w[4], U out[2]) {
  const U a = _mm512_mask_blend_epi32(0xAAAA, w[0], _mm512_slli_epi64(w[1], 32));
  const U b = _mm512_mask_blend_epi32(0xAAAA, w[2], _mm512_slli_epi64(w[3], 32));
  out[0] = _mm512_unpacklo_epi64(a, b);
  out[1] = _mm512_unpackhi_epi64(a, b);
}
inline int64_t append(float* out, F x, unsigned lanes) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(lanes), x));
  return __builtin_popcount(lanes);
}
inline F from_bfloat16(const uint16_t* x) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
// Pairs of bfloat16: the words, their first halves, their second halves.
inline F load_words(const uint16_t* x) { return _mm512_loadu_ps(x); }
inline F low_bfloat16(F x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16)); }
inline F high_bfloat16(F x) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), set(0xFFFF0000u)));
}
inline F from_float16(const uint16_t* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline F from_int8(const int8_t* x) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
inline F from_float8(const uint8_t* x) {  // e4m3fn: no infinities, NaN is 127
  const U bits = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  const U size = _mm512_and_si512(bits, set(0x7Fu)),
          sign = _mm512_slli_epi32(_mm512_sub_epi32(bits, size), 24);
  U value = _mm512_add_epi32(_mm512_slli_epi32(size, 20), set(120u << 23));
  const F tiny = _mm512_mul_ps(_mm512_cvtepi32_ps(size), set(0x1p-9f));
  value = _mm512_mask_mov_epi32(value, _mm512_cmplt_epi32_mask(size, set(8u)), _mm512_castps_si512(tiny));
  value = _mm512_mask_mov_epi32(value, _mm512_cmpeq_epi32_mask(size, set(0x7Fu)), set(0x7FC00000u));
  return _mm512_castsi512_ps(_mm512_or_si512(value, sign));
}
inline F divide(F a, F b) { return _mm512_div_ps(a, b); }
inline F select_at_least(F x, F bar, F yes, F no) {
  return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(x, bar, _CMP_GE_OQ), yes);
}
inline F unpack_low(F a, F b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline F unpack_high(F a, F b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline void transpose(F x[kLanes]) {
  F t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = unpack_low(t[i], t[i + 2]);
    x[i + 1] = unpack_high(t[i], t[i + 2]);
    x[i + 2] = unpack_low(t[i + 1], t[i + 3]);
    x[i + 3] = unpack_high(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {  // quarter c of x[i + j] holds column 4 c + j of rows i ... i + 3
    const F a = _mm512_shuffle_f32x4(x[j], x[4 + j], 0x88),
            b = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0x88);
    const F c = _mm512_shuffle_f32x4(x[j], x[4 + j], 0xDD),
            d = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0xDD);
    x[j] = _mm512_shuffle_f32x4(a, b, 0x88);
    x[8 + j] = _mm512_shuffle_f32x4(a, b, 0xDD);
    x[4 + j] = _mm512_shuffle_f32x4(c, d, 0x88);
    x[12 + j] = _mm512_shuffle_f32x4(c, d, 0xDD);
  }
}
// Lane j holds the sum of x[j]. Halves are added until one vector is left; which sum ends in which lane is
// undone by the order in which the vectors are taken.
inline F sums(const F x[kLanes]) {
  constexpr int kQuarter[4] = {0, 8, 4, 12}, kWithin[4] = {0, 2, 1, 3};
  F a[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) a[kQuarter[j / 4] + kWithin[j % 4]] = x[j];
  for (int j = 0; j < 8; ++j)
    a[j] = add(_mm512_shuffle_f32x4(a[j], a[j + 8], 0x44), _mm512_shuffle_f32x4(a[j], a[j + 8], 0xEE));
  for (int j = 0; j < 4; ++j)
    a[j] = add(_mm512_shuffle_f32x4(a[j], a[j + 4], 0x88), _mm512_shuffle_f32x4(a[j], a[j + 4], 0xDD));
  for (int j = 0; j < 2; ++j) a[j] = add(unpack_low(a[j], a[j + 2]), unpack_high(a[j], a[j + 2]));
  return add(_mm512_shuffle_ps(a[0], a[1], 0x88), _mm512_shuffle_ps(a[0], a[1], 0xDD));
}

#elif defined(SPECDEC_AVX2)

inline constexpr int kLanes = 8;
using F = __m256;
using U = __m256i;

inline F load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* out, F a) { _mm256_storeu_ps(out, a); }
inline void store(uint32_t* out, U a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), a); }
inline F set(float a) { return _mm256_set1_ps(a); }
inline U set(uint32_t a) { return _mm256_set1_epi32(static_cast<int>(a)); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale(F a, F n) {  // 0 below the normal numbers
  const U bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  const F tiny = _mm256_cmp_ps(n, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
  return _mm256_andnot_ps(tiny, _mm256_mul_ps(a, _mm256_castsi256_ps(bits)));
}
inline F zero_unless_at_least(F value, F x, F bar) {
  return _mm256_and_ps(_mm256_cmp_ps(x, bar, _CMP_GE_OQ), value);
}
inline unsigned lanes_of(F mask) { return static_cast<unsigned>(_mm256_movemask_ps(mask)); }
inline unsigned at_least(F a, F b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline unsigned greater(F a, F b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline unsigned equal(F a, F b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline unsigned is_nan(F a) { return lanes_of(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
inline unsigned not_less(F a, F b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_NLT_UQ)); }
inline F only(F x, unsigned lanes) {
  const U bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const U in = _mm256_cmpeq_epi32(_mm256_and_si256(set(lanes), bits), bits);
  const U bound = _mm256_xor_si256(set(0xFF800000u), _mm256_slli_epi32(in, 31));  // +inf or -inf
  return _mm256_min_ps(_mm256_castsi256_ps(bound), x);                            // x where it is NaN
}
inline float reduce_max(F a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
inline double reduce_add(F a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline F to_float(U a) {  // exact halves, one rounding
  const F high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
  const F low = _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)));
  return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
}
inline U counters(uint32_t first) {
  return _mm256_add_epi32(set(first), _mm256_setr_epi32(0, 0, 2, 0, 1, 0, 3, 0));
}
inline U multiply(U a, U b) { return _mm256_mul_epu32(a, b); }
inline U high(U a) { return _mm256_srli_epi64(a, 32); }
inline U exclusive_or(U a, U b, U c) { return _mm256_xor_si256(a, _mm256_xor_si256(b, c)); }
inline void join(const U w[4], U out[2]) {
  const U a = _mm256_blend_epi32(w[0], _mm256_slli_epi64(w[1], 32), 0xAA);
  const U b = _mm256_blend_epi32(w[2], _mm256_slli_epi64(w[3], 32), 0xAA);
  out[0] = _mm256_unpacklo_epi64(a, b);
  out[1] = _mm256_unpackhi_epi64(a, b);
}
// For every set of lanes their numbers, a byte each, before those of the others.
struct LanesFirst {
  uint64_t of[256];
  constexpr LanesFirst() : of() {
    for (unsigned lanes = 0; lanes < 256; ++lanes)
      for (uint64_t lane = 8, at = 8 * __builtin_popcount(lanes); lane-- > 0;)
        if (lanes >> lane & 1) of[lanes] |= lane << (at -= 8);
  }
};
inline constexpr LanesFirst kLanesFirst;
inline int64_t append(float* out, F x, unsigned lanes) {  // writes a whole vector
  const __m128i order = _mm_cvtsi64_si128(static_cast<int64_t>(kLanesFirst.of[lanes]));
  _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(order)));
  return __builtin_popcount(lanes);
}
inline F from_bfloat16(const uint16_t* x) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F load_words(const uint16_t* x) { return _mm256_loadu_ps(reinterpret_cast<const float*>(x)); }
inline F low_bfloat16(F x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16)); }
inline F high_bfloat16(F x) {
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x), set(0xFFFF0000u)));
}
inline F from_float16(const uint16_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline F from_int8(const int8_t* x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
inline F from_float8(const uint8_t* x) {
  const U bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
  const U size = _mm256_and_si256(bits, set(0x7Fu)),
          sign = _mm256_slli_epi32(_mm256_sub_epi32(bits, size), 24);
  U value = _mm256_add_epi32(_mm256_slli_epi32(size, 20), set(120u << 23));
  const F tiny = _mm256_mul_ps(_mm256_cvtepi32_ps(size), set(0x1p-9f));
  value = _mm256_blendv_epi8(value, _mm256_castps_si256(tiny), _mm256_cmpgt_epi32(set(8u), size));
  value = _mm256_blendv_epi8(value, set(0x7FC00000u), _mm256_cmpeq_epi32(size, set(0x7Fu)));
  return _mm256_castsi256_ps(_mm256_or_si256(value, sign));
}
inline F divide(F a, F b) { return _mm256_div_ps(a, b); }
inline F select_at_least(F x, F bar, F yes, F no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, bar, _CMP_GE_OQ));
}
inline void transpose(F x[kLanes]) {
  F t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int j = 0; j < 4; ++j) {
    x[j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
    x[4 + j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
  }
}

#else  // plain C++ with the compiler's four-lane vectors, and NEON where that is slow

inline constexpr int kLanes = 4;
typedef float F __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));

inline F load(const float* x) {
  F a;
  __builtin_memcpy(&a, x, sizeof a);
  return a;
}
inline void store(float* out, F a) { __builtin_memcpy(out, &a, sizeof a); }
inline void store(uint32_t* out, U a) { __builtin_memcpy(out, &a, sizeof a); }
inline F set(float a) { return F{a, a, a, a}; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
#if defined(SPECDEC_NEON)
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F round(F a) { return vrndnq_f32(a); }
inline unsigned lanes_of(I mask) { return vaddvq_u32(reinterpret_cast<U>(mask) & U{1, 2, 4, 8}); }
#else
inline F fma(F a, F b, F c) { return a * b + c; }
inline F round(F a) {  // to nearest even, for |a| < 2^22
  const F magic = set(12582912.0f);
  return (a + magic) - magic;
}
inline unsigned lanes_of(I mask) { return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u); }
#endif
inline F select(I mask, F a, F b) {
  return reinterpret_cast<F>((reinterpret_cast<I>(a) & mask) | (reinterpret_cast<I>(b) & ~mask));
}
inline F max(F a, F b) { return select(a > b, a, b); }
inline F scale(F a, F n) {
  const I bits = (__builtin_convertvector(n, I) + 127) << 23;
  return select(n < set(-126.0f), set(0.0f), a * reinterpret_cast<F>(bits));
}
inline F zero_unless_at_least(F value, F x, F bar) { return select(x >= bar, value, set(0.0f)); }
inline unsigned at_least(F a, F b) { return lanes_of(a >= b); }
inline unsigned greater(F a, F b) { return lanes_of(a > b); }
inline unsigned equal(F a, F b) { return lanes_of(a == b); }
inline unsigned is_nan(F a) { return lanes_of(a != a); }
inline unsigned not_less(F a, F b) { return lanes_of(~(a < b)); }
inline F only(F x, unsigned lanes) {
  const U bits = {1, 2, 4, 8};
  const F bound =
      select((U{lanes, lanes, lanes, lanes} & bits) == bits, set(__builtin_inff()), set(-__builtin_inff()));
  return select(bound < x, bound, x);
}
inline float reduce_max(F a) {
  const float b = a[0] > a[1] ? a[0] : a[1], c = a[2] > a[3] ? a[2] : a[3];
  return b > c ? b : c;
}
inline double reduce_add(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline F to_float(U a) {
  const F high = __builtin_convertvector(reinterpret_cast<I>(a >> 16), F);
  return high * 65536.0f + __builtin_convertvector(reinterpret_cast<I>(a & 0xFFFFu), F);
}
inline F load_words(const uint16_t* x) {
  F a;
  __builtin_memcpy(&a, x, sizeof a);
  return a;
}
inline F low_bfloat16(F x) { return reinterpret_cast<F>(reinterpret_cast<U>(x) << 16); }
inline F high_bfloat16(F x) { return reinterpret_cast<F>(reinterpret_cast<U>(x) & 0xFFFF0000u); }
#if defined(SPECDEC_NEON)
inline F from_bfloat16(const uint16_t* x) { return reinterpret_cast<F>(vshll_n_u16(vld1_u16(x), 16)); }
inline F from_float16(const uint16_t* x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
inline int16x4_t widened(const void* x) {  // four signed bytes
  int32_t bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes))));
}
inline F from_int8(const int8_t* x) { return vcvtq_f32_s32(vmovl_s16(widened(x))); }
inline F from_float8(const uint8_t* x) {
  const U bits = reinterpret_cast<U>(vmovl_s16(widened(x))), size = bits & 0x7Fu;
  const F tiny = vcvtq_f32_u32(size) * 0x1p-9f;
  F value = select(size < 8u, tiny, reinterpret_cast<F>((size << 20) + (120u << 23)));
  value = select(size == 0x7Fu, set(__builtin_nanf("")), value);
  return reinterpret_cast<F>(reinterpret_cast<U>(value) | (bits & 0x80000000u));
}
// Both halves of the products of Philox.
struct Product {
  U high, low;
};
inline Product multiply(U a, uint32_t b) {
  const U even = reinterpret_cast<U>(vmull_n_u32(vget_low_u32(a), b)),
          odd = reinterpret_cast<U>(vmull_high_n_u32(a, b));
  return {vuzp2q_u32(even, odd), vuzp1q_u32(even, odd)};
}
inline U set(uint32_t a) { return U{a, a, a, a}; }
inline U counters(uint32_t first) { return set(first) + U{0, 1, 2, 3}; }
#else
inline F from_bfloat16(const uint16_t* x) {
  return reinterpret_cast<F>(U{static_cast<uint32_t>(x[0]) << 16, static_cast<uint32_t>(x[1]) << 16,
                               static_cast<uint32_t>(x[2]) << 16, static_cast<uint32_t>(x[3]) << 16});
}
inline float from_float16(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112u) << 23) | (fraction << 13);
  float out;
  __builtin_memcpy(&out, &bits, sizeof out);
  return out;
}
inline F from_float16(const uint16_t* x) {
  return F{from_float16(x[0]), from_float16(x[1]), from_float16(x[2]), from_float16(x[3])};
}
inline F from_int8(const int8_t* x) {
  return F{static_cast<float>(x[0]), static_cast<float>(x[1]), static_cast<float>(x[2]),
           static_cast<float>(x[3])};
}
inline float from_float8(uint8_t x) {
  const uint32_t size = x & 0x7Fu;
  float out = static_cast<float>(size) * 0x1p-9f;
  const uint32_t bits = size == 0x7F ? 0x7FC00000u : (size << 20) + (120u << 23);
  if (size >= 8) __builtin_memcpy(&out, &bits, sizeof out);
  return x & 0x80u ? -out : out;
}
inline F from_float8(const uint8_t* x) {
  return F{from_float8(x[0]), from_float8(x[1]), from_float8(x[2]), from_float8(x[3])};
}
#endif
inline F divide(F a, F b) { return a / b; }
inline F select_at_least(F x, F bar, F yes, F no) { return select(x >= bar, yes, no); }
inline void transpose(F x[kLanes]) {
  const F a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5),
          b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
  const F c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7),
          d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
  x[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  x[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  x[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  x[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

#endif

#if !defined(SPECDEC_AVX512)
inline F sums(const F x[kLanes]) {
  F t[kLanes];
  for (int j = 0; j < kLanes; ++j) t[j] = x[j];
  transpose(t);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) t[j] = add(t[j], t[j + half]);
  return t[0];
}
#endif

#if !defined(SPECDEC_AVX512) && !defined(SPECDEC_AVX2)
inline int64_t append(float* out, F x, unsigned lanes) {
  float values[kLanes];
  store(values, x);
  int64_t count = 0;
  for (; lanes; lanes &= lanes - 1) out[count++] = values[__builtin_ctz(lanes)];
  return count;
}
#endif
