// SPDX-License-Identifier: Apache-2.0
// The kernels of attention_kernels.h, written once for every target; included by kernels_inl.h. Indices: k of
// keys, m of queries or rows, i and e of elements of a row; W vectors of rows, N of keys, D of elements; S
// slots.

// 2^t for t <= 0; 0 for -inf. Unlike exp2_negative it keeps NaN.
inline F weight_of(F t) { return exp2_bounded(max(set(kLeastExponent), t)); }

// The rational approximation of Eigen's fast tanh, a few units in the last place.
inline F tanh_of(F x) {
  constexpr float kOne = 7.90531111f;  // where tanh rounds to 1
  x = max(set(-kOne), x);
  x = sub(set(0.0f), max(set(-kOne), sub(set(0.0f), x)));
  const F y = mul(x, x);
  F p = fma(set(-2.76076847742355e-16f), y, set(2.00018790482477e-13f));
  p = fma(p, y, set(-8.60467152213735e-11f));
  p = fma(p, y, set(5.12229709037114e-08f));
  p = fma(p, y, set(1.48572235717979e-05f));
  p = fma(p, y, set(6.37261928875436e-04f));
  p = fma(p, y, set(4.89352455891786e-03f));
  F q = fma(set(1.19825839466702e-06f), y, set(1.18534705686654e-04f));
  q = fma(q, y, set(2.26843463243900e-03f));
  q = fma(q, y, set(4.89352518554385e-03f));
  return divide(mul(x, p), q);
}

// --- Rows of any dtype -------------------------------------------------------------------------------------

template <DType T>
inline F load_as(const void* row, int64_t i) {
  if constexpr (T == SPECDEC_FLOAT32) return load(static_cast<const float*>(row) + i);
  if constexpr (T == SPECDEC_BFLOAT16) return from_bfloat16(static_cast<const uint16_t*>(row) + i);
  if constexpr (T == SPECDEC_FLOAT16) return from_float16(static_cast<const uint16_t*>(row) + i);
  if constexpr (T == SPECDEC_INT8) return from_int8(static_cast<const int8_t*>(row) + i);
  if constexpr (T == SPECDEC_FLOAT8_E4M3FN) return from_float8(static_cast<const uint8_t*>(row) + i);
}

// Elements i ... of a row of `size`; zeros from its end on, and for a null row.
template <DType T>
inline F load_within(const void* row, int64_t i, int64_t size) {
  if (row == nullptr || i >= size) return set(0.0f);
  if (i + kLanes <= size) return load_as<T>(row, i);
  constexpr int64_t kBytes = bytes_of(T);
  unsigned char rest[kLanes * kBytes] = {};
  __builtin_memcpy(rest, static_cast<const unsigned char*>(row) + i * kBytes, (size - i) * kBytes);
  return load_as<T>(rest, 0);
}

template <DType T>
void pack_columns_as(const RowList& in, int64_t count, float* out) {
  const int64_t width = padded(count, kLanes);
  for (int64_t r = 0; r < width; r += kLanes)
    for (int64_t i = 0; i < in.size; i += kLanes) {
      F x[kLanes];
      for (int j = 0; j < kLanes; ++j)
        x[j] = load_within<T>(r + j < count ? in.rows[r + j] : nullptr, i, in.size);
      transpose(x);
      for (int j = 0; j < kLanes && i + j < in.size; ++j) store(out + (i + j) * width + r, x[j]);
    }
}

// A row to float32, `panel` floats for every kPanel elements; zeros up to `width`, and for a null row.
template <DType T>
inline void pack_row(const void* row, int64_t size, int64_t width, int64_t panel, float* out) {
  const int64_t whole = row ? size / kPanel * kPanel : 0;
  for (int64_t i = 0; i < whole; i += kPanel, out += panel)
    for (int64_t e = 0; e < kPanel; e += kLanes) store(out + e, load_as<T>(row, i + e));
  for (int64_t i = whole; i < width; i += kPanel, out += panel)
    for (int64_t e = 0; e < kPanel; e += kLanes) store(out + e, load_within<T>(row, i + e, size));
}

template <DType T>
void pack_rows_as(const RowList& in, int64_t count, int64_t stride, float* out) {
  for (int64_t r = 0; r < count; ++r) pack_row<T>(in.rows[r], in.size, stride, kPanel, out + r * stride);
}

template <DType T>
void pack_panels_as(const RowList& in, int64_t count, float* out) {
  const int64_t width = padded(in.size, kPanel);
  for (int64_t r = 0; r < count; ++r) pack_row<T>(in.rows[r], in.size, width, kPanelStride, out + r * kPanel);
}

// --- Packed rows -------------------------------------------------------------------------------------------

inline void prefetch_lines(Prefetch& prefetch, int64_t lines) {
  for (; prefetch.count > 0 && lines > 0; --lines) {
    __builtin_prefetch(static_cast<const char*>(*prefetch.rows) + prefetch.done, 0, 2);
    prefetch.done += kLineBytes;
    if (prefetch.done >= prefetch.bytes) {
      prefetch.done = 0;
      ++prefetch.rows;
      --prefetch.count;
    }
  }
}

// Keys, or elements of the output, that a register block holds beside W vectors of rows: enough chains of
// additions to keep the processor busy, few enough to stay in registers.
#if defined(SPECDEC_AVX512) || defined(SPECDEC_NEON)  // 32 registers
template <int W>
inline constexpr int kRegisterBlock = W == 1   ? 16
                                      : W == 2 ? 8
                                               : 4;
#else
template <int W>
inline constexpr int kRegisterBlock = W == 1 ? 8 : 4;
#endif

// Scores of a register block of keys with W vectors of rows, times the factor.
template <int W>
inline void dot_block(const float* queries, const float* keys, int64_t stride, int64_t head, F factor,
                      float* out) {
  F acc[kRegisterBlock<W>][W];
  for (int k = 0; k < kRegisterBlock<W>; ++k)
    for (int w = 0; w < W; ++w) acc[k][w] = set(0.0f);
  for (int64_t i = 0; i < head; ++i) {
    F q[W];
    for (int w = 0; w < W; ++w) q[w] = load(queries + (i * W + w) * kLanes);
    for (int k = 0; k < kRegisterBlock<W>; ++k) {
      const F x = set(keys[k * stride + i]);
      for (int w = 0; w < W; ++w) acc[k][w] = fma(x, q[w], acc[k][w]);
    }
  }
  for (int k = 0; k < kRegisterBlock<W>; ++k)
    for (int w = 0; w < W; ++w) store(out + (k * W + w) * kLanes, mul(acc[k][w], factor));
}

// out = out * alpha + weights . values for a register block of elements.
template <int W>
inline void sum_block(const float* weights, const float* values, int64_t count, const F alpha[W],
                      float* out) {
  F acc[kRegisterBlock<W>][W];
  for (int e = 0; e < kRegisterBlock<W>; ++e)
    for (int w = 0; w < W; ++w) acc[e][w] = mul(load(out + (e * W + w) * kLanes), alpha[w]);
  for (int64_t k = 0; k < count; ++k) {
    F p[W];
    for (int w = 0; w < W; ++w) p[w] = load(weights + (k * W + w) * kLanes);
    for (int e = 0; e < kRegisterBlock<W>; ++e) {
      const F x = set(values[k * kPanel + e]);
      for (int w = 0; w < W; ++w) acc[e][w] = fma(x, p[w], acc[e][w]);
    }
  }
  for (int e = 0; e < kRegisterBlock<W>; ++e)
    for (int w = 0; w < W; ++w) store(out + (e * W + w) * kLanes, acc[e][w]);
}

// Scores that a vector of rows does not see become -inf.
inline void mask_scores(const Keys& keys, int64_t count, const float* first, float* scores, int64_t stride) {
  for (int64_t k = 0; k < count; ++k) {
    const F score = load(scores + k * stride);
    F kept = ((keys.visible >> k) & 1) ? score : set(-__builtin_inff());
    if (first) kept = select_at_least(set(static_cast<float>(k)), load(first), kept, set(-__builtin_inff()));
    store(scores + k * stride, kept);
  }
}

// Scores of one vector of rows become weights; returns what earlier weights are to be multiplied by.
inline F softmax_step(int64_t count, float* scores, int64_t stride, float* maxima, float* sums) {
  F best = load(maxima);
  const F before = best;
  for (int64_t k = 0; k < count; ++k) best = max(load(scores + k * stride), best);
  F parts[kParts];
  for (int j = 0; j < kParts; ++j) {
    parts[j] = set(0.0f);
    for (int64_t k = j; k < count; k += kParts) {
      const F p = weight_of(sub(load(scores + k * stride), best));
      store(scores + k * stride, p);
      parts[j] = add(parts[j], p);
    }
  }
  for (int half = kParts / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) parts[j] = add(parts[j], parts[j + half]);
  const F alpha = weight_of(sub(before, best));
  store(maxima, best);
  store(sums, fma(load(sums), alpha, parts[0]));
  return alpha;
}

inline void cap_scores(const Scoring& scoring, int64_t n, float* scores) {
  const F bound = set(scoring.bound);
  for (int64_t i = 0; i < n; i += kLanes) store(scores + i, mul(tanh_of(load(scores + i)), bound));
}

template <int W>
void attend_packed_as(const Tile& tile, const Scoring& scoring, const float* queries, int64_t head,
                      const SoftmaxState& state, int64_t value_size, float* scratch, Prefetch& prefetch) {
  const Keys& keys = tile.keys;
  const int64_t count = padded(keys.count, kParts), lines = prefetch.lines();
  const int64_t steps = count / kRegisterBlock<W> + padded(value_size, kPanel) / kRegisterBlock<W>,
                share = lines / steps + 1;
  for (int64_t k = 0; k < count; k += kRegisterBlock<W>) {
    prefetch_lines(prefetch, share);
    dot_block<W>(queries, tile.key_rows + k * tile.key_stride, tile.key_stride, head, set(scoring.factor),
                 scratch + k * W * kLanes);
  }
  if (scoring.bound > 0) cap_scores(scoring, count * W * kLanes, scratch);
  const bool all = keys.first == nullptr && keys.visible == ~uint64_t{0};
  F alpha[W];
  for (int w = 0; w < W; ++w) {
    const int64_t at = w * kLanes;
    if (!all) mask_scores(keys, count, keys.first ? keys.first + at : nullptr, scratch + at, W * kLanes);
    alpha[w] = softmax_step(count, scratch + at, W * kLanes, state.max + at, state.sum + at);
  }
  for (int64_t e = 0; e < value_size; e += kRegisterBlock<W>) {
    prefetch_lines(prefetch, share);
    sum_block<W>(scratch, tile.value_panels + e / kPanel * kPanelStride + e % kPanel, keys.count, alpha,
                 state.out + e * W * kLanes);
  }
}

#if defined(SPECDEC_AVX512) || defined(SPECDEC_NEON)
inline constexpr int kMaxRowVectors = 4;
#else
inline constexpr int kMaxRowVectors = 2;
#endif
static_assert(kMaxRowVectors * kLanes <= kMaxBlock);

void attend_packed(const Tile& tile, const Scoring& scoring, const float* queries, int64_t head, int64_t rows,
                   const SoftmaxState& state, int64_t value_size, float* scratch, Prefetch& prefetch) {
  switch ((rows + kLanes - 1) / kLanes) {
    case 1:
      return attend_packed_as<1>(tile, scoring, queries, head, state, value_size, scratch, prefetch);
    case 2:
      return attend_packed_as<2>(tile, scoring, queries, head, state, value_size, scratch, prefetch);
#if defined(SPECDEC_AVX512) || defined(SPECDEC_NEON)
    case 3:
      return attend_packed_as<3>(tile, scoring, queries, head, state, value_size, scratch, prefetch);
    default:
      return attend_packed_as<4>(tile, scoring, queries, head, state, value_size, scratch, prefetch);
#endif
  }
}

// --- Few rows, the cache read in place ---------------------------------------------------------------------

// Elements of a key that are transposed at a time: pairs of bfloat16 go as one word.
template <DType T>
inline constexpr int kTransposedAtOnce = T == SPECDEC_BFLOAT16 ? 2 * kLanes : kLanes;

// Loads kLanes keys so that each lane has one: out[j] holds element i + j, or words of two.
template <DType T>
inline void load_transposed(const void* const* keys, int64_t i, F out[kLanes]) {
  F x[kLanes];
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j)
    if constexpr (T == SPECDEC_BFLOAT16)
      x[j] = load_words(static_cast<const uint16_t*>(keys[j]) + i);
    else
      x[j] = load_as<T>(keys[j], i);
  transpose(x);
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) out[j] = x[j];
}

// Scores of N * kLanes keys for M queries: N * M chains of additions side by side.
template <DType T, int M, int N>
inline void dot_in_place(const RowList& keys, int64_t k, const float* queries, F factor,
                         float (*scores)[kTile], Prefetch& prefetch, int64_t lines) {
  const int64_t stride = padded(keys.size, kPanel),
                whole = keys.size / kTransposedAtOnce<T> * kTransposedAtOnce<T>;
  F acc[N][M], transposed[N][kLanes];
  for (int n = 0; n < N; ++n)
    for (int m = 0; m < M; ++m) acc[n][m] = set(0.0f);
  for (int64_t i = 0; i < whole; i += kTransposedAtOnce<T>) {
    prefetch_lines(prefetch, N * lines);
    for (int n = 0; n < N; ++n) load_transposed<T>(keys.rows + k + n * kLanes, i, transposed[n]);
    for (int j = 0; j < kLanes; ++j) {
      const float* q = queries + i + j * (kTransposedAtOnce<T> / kLanes);
      if constexpr (T == SPECDEC_BFLOAT16) {
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < N; ++n)
            acc[n][m] = fma(set(q[m * stride]), low_bfloat16(transposed[n][j]), acc[n][m]);
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < N; ++n)
            acc[n][m] = fma(set(q[m * stride + 1]), high_bfloat16(transposed[n][j]), acc[n][m]);
      } else {
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < N; ++n) acc[n][m] = fma(set(q[m * stride]), transposed[n][j], acc[n][m]);
      }
    }
  }
  for (int64_t i = whole; i < keys.size; i += kLanes)
    for (int n = 0; n < N; ++n) {
      F x[kLanes];
      for (int j = 0; j < kLanes; ++j) x[j] = load_within<T>(keys.rows[k + n * kLanes + j], i, keys.size);
      transpose(x);
      for (int j = 0; j < kLanes && i + j < keys.size; ++j)
        for (int m = 0; m < M; ++m) acc[n][m] = fma(set(queries[m * stride + i + j]), x[j], acc[n][m]);
    }
  for (int n = 0; n < N; ++n)
    for (int m = 0; m < M; ++m) store(scores[m] + k + n * kLanes, mul(acc[n][m], factor));
}

#if defined(SPECDEC_AVX512)
template <int M>
inline constexpr int kKeyVectors = M > 4 ? 2 : 4;  // vectors of keys whose scores are added up side by side
#else
template <int M>
inline constexpr int kKeyVectors = M > 4 ? 1 : 2;
#endif

// out = out * alpha + weights . values for D vectors of elements from i on.
template <DType T, int M, int D>
inline void sum_in_place(const RowList& values, int64_t count, const float (*weights)[kTile],
                         const float* alpha, float* out, int64_t i, Prefetch& prefetch, int64_t lines) {
  const int64_t width = padded(values.size, kPanel);
  const bool whole = i + D * kLanes <= values.size;
  F acc[M][D];
  for (int m = 0; m < M; ++m)
    for (int d = 0; d < D; ++d) acc[m][d] = mul(load(out + m * width + i + d * kLanes), set(alpha[m]));
  for (int64_t k = 0; k < count; ++k) {
    prefetch_lines(prefetch, lines);
    F x[D];
    for (int d = 0; d < D; ++d)
      x[d] = whole ? load_as<T>(values.rows[k], i + d * kLanes)
                   : load_within<T>(values.rows[k], i + d * kLanes, values.size);
    for (int m = 0; m < M; ++m) {
      const F p = set(weights[m][k]);
      for (int d = 0; d < D; ++d) acc[m][d] = fma(x[d], p, acc[m][d]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int d = 0; d < D; ++d) store(out + m * width + i + d * kLanes, acc[m][d]);
}

// Scores of one row become weights; returns what earlier weights are to be multiplied by.
inline float softmax_row_step(int64_t count, float* scores, float* max_score, float* sum) {
  const float before = *max_score;
  F best = set(before);
  for (int64_t k = 0; k < count; k += kLanes) best = max(load(scores + k), best);
  const float now = reduce_max(best);
  F sums[kParts / kLanes];
  for (F& part : sums) part = set(0.0f);
  for (int64_t k = 0; k < count; k += kLanes) {
    const F p = weight_of(sub(load(scores + k), set(now)));
    store(scores + k, p);
    sums[k % kParts / kLanes] = add(sums[k % kParts / kLanes], p);
  }
  float parts[kParts], values[kLanes];
  for (int j = 0; j < kParts / kLanes; ++j) store(parts + j * kLanes, sums[j]);
  for (int half = kParts / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) parts[j] = parts[j] + parts[j + half];
  store(values, weight_of(sub(set(before), set(now))));
  const float alpha = values[0];
  store(values, fma(set(*sum), set(alpha), set(parts[0])));
  *max_score = now;
  *sum = values[0];
  return alpha;
}

template <DType T, int M>
void attend_in_place_as(const RowList& keys, const RowList& values, const Keys& which, const Scoring& scoring,
                        const float* queries, const SoftmaxState& state, Prefetch& during_keys,
                        Prefetch& during_values) {
  const int64_t width = padded(values.size, kPanel);
  float scores[M][kTile];
  float alpha[M];
  constexpr int kWhole = kKeyVectors<M> * kLanes;
  const int64_t turns = padded(which.count, kParts) / kLanes * (keys.size / kTransposedAtOnce<T>)+1;
  const int64_t key_lines = during_keys.lines() / turns + 1;
  for (int64_t k = 0; k < which.count;)
    if (k + kWhole <= padded(which.count, kParts)) {
      dot_in_place<T, M, kKeyVectors<M>>(keys, k, queries, set(scoring.factor), scores, during_keys,
                                         key_lines);
      k += kWhole;
    } else {
      dot_in_place<T, M, 1>(keys, k, queries, set(scoring.factor), scores, during_keys, key_lines);
      k += kLanes;
    }
  const int64_t count = padded(which.count, kParts);
  for (int64_t k = padded(which.count, kLanes); k < count; k += kLanes)
    for (int m = 0; m < M; ++m) store(scores[m] + k, set(0.0f));
  for (int m = 0; m < M; ++m) {
    float* row = scores[m];
    if (scoring.bound > 0) cap_scores(scoring, count, row);
    if (which.first || which.visible != ~uint64_t{0})
      for (int64_t k = 0; k < count; ++k)
        if (!((which.visible >> k) & 1) || (which.first && k < which.first[m])) row[k] = -__builtin_inff();
    alpha[m] = softmax_row_step(count, row, state.max + m, state.sum + m);
  }
  constexpr int kValueVectors = M > 4 ? 2 : 4;
  const int64_t value_lines =
      during_values.lines() / (which.count * (width / (kValueVectors * kLanes)) + 1) + 1;
  int64_t i = 0;
  for (; i + kValueVectors * kLanes <= values.size; i += kValueVectors * kLanes)
    sum_in_place<T, M, kValueVectors>(values, which.count, scores, alpha, state.out, i, during_values,
                                      value_lines);
  for (; i < width; i += kLanes)
    sum_in_place<T, M, 1>(values, which.count, scores, alpha, state.out, i, during_values, value_lines);
}

template <DType T>
void attend_in_place_of(const RowList& keys, const RowList& values, const Keys& which, const Scoring& scoring,
                        const float* queries, int64_t rows, const SoftmaxState& state, Prefetch& during_keys,
                        Prefetch& during_values) {
  if (rows <= 1)
    return attend_in_place_as<T, 1>(keys, values, which, scoring, queries, state, during_keys, during_values);
  if (rows <= 4)
    return attend_in_place_as<T, 4>(keys, values, which, scoring, queries, state, during_keys, during_values);
  return attend_in_place_as<T, 8>(keys, values, which, scoring, queries, state, during_keys, during_values);
}

// --- Few rows of several heads, slot by slot ---------------------------------------------------------------

// Prefetches lines of some rows in the order of memory, in which the processor's own prefetching joins in.
struct SlotPrefetch {
  const void* const* rows;
  int64_t from, bytes;  // of each row
  int64_t done = 0;

  void next_line() {
    __builtin_prefetch(static_cast<const char*>(*rows) + from + done, 0, 3);
    done += kLineBytes;
    if (done < bytes) return;
    done = 0;
    ++rows;
  }
};

// Scores of a few slots of one head: lanes are elements of the key, summed up at the end for all together.
template <DType T, int M>
inline void dot_slots(const void* const* rows, int64_t step, int64_t size, const float* queries, F factor,
                      float (*scores)[kTile], int64_t k, SlotPrefetch& prefetch) {
  constexpr int S = kLanes / M;
  F acc[M * S];
  for (F& a : acc) a = set(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    F q[M];
    for (int m = 0; m < M; ++m) q[m] = load(queries + m * size + i);
    for (int s = 0; s < S; ++s) {
      const F x = load_as<T>(static_cast<const char*>(rows[k + s]) + step, i);
      if (i * bytes_of(T) % kLineBytes == 0) prefetch.next_line();
      for (int m = 0; m < M; ++m) acc[m * S + s] = fma(x, q[m], acc[m * S + s]);
    }
  }
  float all[kLanes];
  store(all, mul(sums(acc), factor));
  for (int m = 0; m < M; ++m) __builtin_memcpy(scores[m] + k, all + m * S, S * sizeof(float));
}

// out += weights . values for a few slots of one head.
template <DType T, int M>
inline void sum_slots(const void* const* rows, int64_t step, int64_t size, const float (*weights)[kTile],
                      int64_t k, float* out, SlotPrefetch& prefetch) {
  constexpr int S = kLanes / M;
  F p[M * S];
  for (int m = 0; m < M; ++m)
    for (int s = 0; s < S; ++s) p[m * S + s] = set(weights[m][k + s]);
  for (int64_t i = 0; i < size; i += kLanes) {
    F acc[M];
    for (int m = 0; m < M; ++m) acc[m] = load(out + m * size + i);
    for (int s = 0; s < S; ++s) {
      const F x = load_as<T>(static_cast<const char*>(rows[k + s]) + step, i);
      if (i * bytes_of(T) % kLineBytes == 0) prefetch.next_line();
      for (int m = 0; m < M; ++m) acc[m] = fma(x, p[m * S + s], acc[m]);
    }
    for (int m = 0; m < M; ++m) store(out + m * size + i, acc[m]);
  }
}

// Calls body(h, k, prefetch) for all heads of S slots at a time; `prefetch` is for slots further on, by the
// bytes of S slots in float32: enough for memory to bring them, few enough for the first-level cache to hold.
template <DType T, int S, class Body>
inline void for_slots(const void* const* rows, int64_t heads, int64_t step, int64_t size, Body&& body) {
  const int64_t bytes = size * bytes_of(T);
  for (int64_t k = 0; k < kTile; k += S) {
    const void* const* ahead = rows + k + S * bytes_of(SPECDEC_FLOAT32) / bytes_of(T);
    SlotPrefetch prefetch{ahead, 0, heads * bytes};
    for (int64_t h = 0; h < heads; ++h) {
      if (step != bytes) prefetch = {ahead, h * step, bytes};  // the heads of a slot lie apart
      body(h, k, prefetch);
    }
  }
}

template <DType T, int M>
void attend_slots_as(const Slots& slots, const float* queries, const SoftmaxState& state) {
  constexpr int S = kLanes / M;
  float scores[kMaxHeads][M][kTile];
  const auto dot = [&](int64_t h, int64_t k, SlotPrefetch& prefetch) {
    dot_slots<T, M>(slots.rows, h * slots.key_step, slots.key_size,
                    queries + h * kInPlaceRows * slots.key_size, set(slots.scoring[h].factor), scores[h], k,
                    prefetch);
  };
  for_slots<T, S>(slots.rows, slots.heads, slots.key_step, slots.key_size, dot);
  for (int64_t h = 0; h < slots.heads; ++h)
    for (int m = 0; m < M; ++m) {
      const int64_t row = h * kInPlaceRows + m;
      if (slots.scoring[h].bound > 0) cap_scores(slots.scoring[h], kTile, scores[h][m]);
      const float alpha = softmax_row_step(kTile, scores[h][m], state.max + row, state.sum + row);
      float* out = state.out + row * slots.value_size;
      for (int64_t i = 0; i < slots.value_size; i += kLanes) store(out + i, mul(load(out + i), set(alpha)));
    }
  const void* const* values = slots.rows + kTile;
  const auto sum = [&](int64_t h, int64_t k, SlotPrefetch& prefetch) {
    sum_slots<T, M>(values, h * slots.value_step, slots.value_size, scores[h], k,
                    state.out + h * kInPlaceRows * slots.value_size, prefetch);
  };
  for_slots<T, S>(values, slots.heads, slots.value_step, slots.value_size, sum);
}

template <DType T>
void attend_slots_of(const Slots& slots, const float* queries, int64_t rows, const SoftmaxState& state) {
  if (rows <= 1) return attend_slots_as<T, 1>(slots, queries, state);
  if (rows <= 2) return attend_slots_as<T, 2>(slots, queries, state);
  if constexpr (kLanes >= 8)
    if (rows <= 4) return attend_slots_as<T, 4>(slots, queries, state);
  if constexpr (kLanes >= 16) return attend_slots_as<T, 8>(slots, queries, state);
}

// --- Putting together --------------------------------------------------------------------------------------

void merge_packed(const SoftmaxState& state, const SoftmaxState& other, int64_t rows, int64_t value_size) {
  const int64_t width = padded(rows, kLanes);
  for (int64_t r = 0; r < width; r += kLanes) {
    const F best = max(load(state.max + r), load(other.max + r));
    const F a = weight_of(sub(load(state.max + r), best)), b = weight_of(sub(load(other.max + r), best));
    store(state.max + r, best);
    store(state.sum + r, fma(load(other.sum + r), b, mul(load(state.sum + r), a)));
    for (int64_t e = 0; e < value_size; ++e) {
      float* out = state.out + e * width + r;
      store(out, fma(load(other.out + e * width + r), b, mul(load(out), a)));
    }
  }
}

void merge_rows(const SoftmaxState& state, const SoftmaxState& other, int64_t rows, int64_t value_size) {
  const int64_t width = padded(value_size, kPanel);
  for (int64_t r = 0; r < rows; ++r) {
    const F before = set(state.max[r]), there = set(other.max[r]), best = max(before, there);
    const F a = weight_of(sub(before, best)), b = weight_of(sub(there, best));
    float value[kLanes];
    store(value, best);
    state.max[r] = value[0];
    store(value, fma(set(other.sum[r]), b, mul(set(state.sum[r]), a)));
    state.sum[r] = value[0];
    for (int64_t e = 0; e < width; e += kLanes) {
      float* out = state.out + r * width + e;
      const F here = mul(load(out), a);
      store(out, other.out ? fma(load(other.out + r * width + e), b, here) : here);
    }
  }
}

void unpack(const float* in, int64_t rows, int64_t value_size, float scale, float* out) {
  const int64_t packed = padded(rows, kLanes), width = padded(value_size, kPanel);
  for (int64_t r = 0; r < rows; r += kLanes)
    for (int64_t e = 0; e < width; e += kLanes) {
      F x[kLanes];
      for (int j = 0; j < kLanes; ++j) x[j] = mul(load(in + (e + j) * packed + r), set(scale));
      transpose(x);
      for (int j = 0; j < kLanes && r + j < rows; ++j) store(out + (r + j) * width + e, x[j]);
    }
}

// --- One function for all dtypes ---------------------------------------------------------------------------

#define SPECDEC_BY_DTYPE(dtype, function, ...)             \
  switch (dtype) {                                         \
    case SPECDEC_FLOAT32:                                  \
      return function<SPECDEC_FLOAT32>(__VA_ARGS__);       \
    case SPECDEC_BFLOAT16:                                 \
      return function<SPECDEC_BFLOAT16>(__VA_ARGS__);      \
    case SPECDEC_FLOAT16:                                  \
      return function<SPECDEC_FLOAT16>(__VA_ARGS__);       \
    case SPECDEC_INT8:                                     \
      return function<SPECDEC_INT8>(__VA_ARGS__);          \
    case SPECDEC_FLOAT8_E4M3FN:                            \
      return function<SPECDEC_FLOAT8_E4M3FN>(__VA_ARGS__); \
  }

void pack_columns(const RowList& in, int64_t count, float* out) {
  SPECDEC_BY_DTYPE(in.dtype, pack_columns_as, in, count, out)
}

void pack_rows(const RowList& in, int64_t count, int64_t stride, float* out) {
  SPECDEC_BY_DTYPE(in.dtype, pack_rows_as, in, count, stride, out)
}

void pack_panels(const RowList& in, int64_t count, float* out) {
  SPECDEC_BY_DTYPE(in.dtype, pack_panels_as, in, count, out)
}

void attend_in_place(const RowList& keys, const RowList& values, const Keys& which, const Scoring& scoring,
                     const float* queries, int64_t rows, const SoftmaxState& state, Prefetch& during_keys,
                     Prefetch& during_values) {
  SPECDEC_BY_DTYPE(keys.dtype, attend_in_place_of, keys, values, which, scoring, queries, rows, state,
                   during_keys, during_values)
}

void attend_slots(const Slots& slots, const float* queries, int64_t rows, const SoftmaxState& state) {
  SPECDEC_BY_DTYPE(slots.dtype, attend_slots_of, slots, queries, rows, state)
}

#undef SPECDEC_BY_DTYPE

constexpr AttentionKernels kAttention = {
    kLanes,        kMaxRowVectors * kLanes, pack_columns, pack_rows,    pack_panels,
    attend_packed, attend_in_place,         attend_slots, merge_packed, merge_rows,
    unpack};
