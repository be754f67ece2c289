// SPDX-License-Identifier: Apache-2.0
// Log-sum-exp of every row, two passes a row (maximum, then sum of exponentials): the least any verifier that
// normalises these rows can do. Rows are shared out over threads; bfloat16 is widened in registers.
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LOG2E 1.44269504f
#define LOWEST (-87.0f)  // below it exp underflows; keeps 2^n a normal number

// 2^f on [-1/2, 1/2], relative error about 1e-7
static const float POLY[7] = {1.535336188e-4f,
                              1.339887440e-3f,
                              9.618437357e-3f,
                              5.550332471e-2f,
                              2.402264791e-1f,
                              6.931472028e-1f,
                              1.0f};

static inline float widen(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline float at(const void* row, int64_t i, int is_bf16) {
  return is_bf16 ? widen(((const uint16_t*)row)[i]) : ((const float*)row)[i];
}

static inline float exp1(float x) {
  float t = (x < LOWEST ? LOWEST : x) * LOG2E, n = rintf(t), f = t - n, p = POLY[0], power;
  for (int k = 1; k < 7; k++) p = p * f + POLY[k];
  int32_t bits = ((int32_t)n + 127) << 23;
  memcpy(&power, &bits, 4);
  return p * power;
}

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#define BLOCK 64

static inline __m512 load(const void* row, int64_t i, int is_bf16) {
  if (!is_bf16) return _mm512_loadu_ps((const float*)row + i);
  __m256i halves = _mm256_loadu_si256((const __m256i*)((const uint16_t*)row + i));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline __m512 exp16(__m512 x) {
  __m512 t = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(LOWEST)), _mm512_set1_ps(LOG2E));
  __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_sub_ps(t, n), p = _mm512_set1_ps(POLY[0]);
  for (int k = 1; k < 7; k++) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(POLY[k]));
  return _mm512_scalef_ps(p, n);
}

static inline float block_max(const void* row, int64_t end, int is_bf16) {
  __m512 m[4];
  for (int j = 0; j < 4; j++) m[j] = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < end; i += BLOCK)
    for (int j = 0; j < 4; j++) m[j] = _mm512_max_ps(m[j], load(row, i + 16 * j, is_bf16));
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3])));
}

static inline float block_sum(const void* row, int64_t end, int is_bf16, float top, float scale) {
  __m512 s[4], shift = _mm512_set1_ps(-top * scale), factor = _mm512_set1_ps(scale);
  for (int j = 0; j < 4; j++) s[j] = _mm512_setzero_ps();
  for (int64_t i = 0; i < end; i += BLOCK)
    for (int j = 0; j < 4; j++)
      s[j] = _mm512_add_ps(s[j], exp16(_mm512_fmadd_ps(load(row, i + 16 * j, is_bf16), factor, shift)));
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}
#else
#define BLOCK 32  // independent lanes, so that the compiler may vectorise without reordering a sum

static inline float block_max(const void* row, int64_t end, int is_bf16) {
  float m[BLOCK], top = -INFINITY;
  for (int j = 0; j < BLOCK; j++) m[j] = -INFINITY;
  for (int64_t i = 0; i < end; i += BLOCK)
    for (int j = 0; j < BLOCK; j++) {
      float x = at(row, i + j, is_bf16);
      m[j] = x > m[j] ? x : m[j];
    }
  for (int j = 0; j < BLOCK; j++) top = m[j] > top ? m[j] : top;
  return top;
}

static inline float block_sum(const void* row, int64_t end, int is_bf16, float top, float scale) {
  float s[BLOCK] = {0}, sum = 0;
  for (int64_t i = 0; i < end; i += BLOCK)
    for (int j = 0; j < BLOCK; j++) s[j] += exp1((at(row, i + j, is_bf16) - top) * scale);
  for (int j = 0; j < BLOCK; j++) sum += s[j];
  return sum;
}
#endif

static inline float row_lse(const void* row, int64_t vocab, int is_bf16, float scale) {
  int64_t whole = vocab - vocab % BLOCK;
  float top = block_max(row, whole, is_bf16), sum;
  for (int64_t i = whole; i < vocab; i++) top = fmaxf(top, at(row, i, is_bf16));
  sum = block_sum(row, whole, is_bf16, top, scale);
  for (int64_t i = whole; i < vocab; i++) sum += exp1((at(row, i, is_bf16) - top) * scale);
  return top * scale + logf(sum);
}

void lse_rows(const void* logits, float* out, int64_t rows, int64_t vocab, float scale, int is_bf16,
              int threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    const char* row = (const char*)logits + r * vocab * (is_bf16 ? 2 : 4);
    out[r] = is_bf16 ? row_lse(row, vocab, 1, scale) : row_lse(row, vocab, 0, scale);
  }
}
