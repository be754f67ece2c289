// SPDX-License-Identifier: Apache-2.0
// Random numbers and memory for c_fuzz.c.
#ifndef SPECDEC_FUZZ_H
#define SPECDEC_FUZZ_H

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "specdec.h"

static uint64_t state;
static void* owned[96];
static int64_t owned_bytes[96];
static int owned_count;

static const uint8_t* given;  // what chooses the first numbers, two bytes each
static size_t given_bytes;

static uint64_t random_bits(void) {  // splitmix64
  uint64_t z = (state += 0x9E3779B97F4A7C15u);
  if (given_bytes >= 2) {
    z = given[0] + 256u * given[1] + 1u;
    given += 2, given_bytes -= 2;
  }
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
static int64_t below(int64_t n) { return (int64_t)(random_bits() % (uint64_t)n); }
static int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
static int rarely(int n) { return below(n) == 0; }

static void* memory(int64_t bytes) {
  void* data = malloc((size_t)bytes);
  if (!data) exit(2);
  memset(data, 0x5A, (size_t)bytes);
  owned_bytes[owned_count] = bytes;
  return owned[owned_count++] = data;
}

static void free_memory(void) {
  while (owned_count) free(owned[--owned_count]);
}

// Appends the number and result of a call, and how many pieces of memory it has; of each, its size and bytes.
static void keep(FILE* file, int64_t call, int64_t result) {
  const int64_t head[3] = {call, result, owned_count};
  fwrite(head, sizeof head, 1, file);
  for (int i = 0; i < owned_count; ++i) {
    fwrite(&owned_bytes[i], sizeof owned_bytes[i], 1, file);
    fwrite(owned[i], 1, (size_t)owned_bytes[i], file);
  }
}

// Mostly in [-1, most]; the rest are extremes.
static int64_t integer(int64_t most) {
  const int64_t extremes[] = {INT64_MIN, INT64_MAX, INT32_MIN, INT32_MAX, -2, most + 1};
  return rarely(25) ? extremes[below(6)] : between(-1, most);
}
static int64_t* longs(int64_t n, int64_t most) {
  int64_t* data = memory(n * 8);
  for (int64_t i = 0; i < n; ++i) data[i] = integer(most);
  return data;
}
static int32_t* ints(int64_t n, int64_t most) {
  int32_t* data = memory(n * 4);
  for (int64_t i = 0; i < n; ++i) data[i] = (int32_t)integer(most);
  return data;
}
static double real(void) {
  const double extremes[] = {NAN, INFINITY, -INFINITY, 1e300, -1e300, 1e-300, 0};
  return rarely(20) ? extremes[below(7)] : (double)below(4000) / 400 - 4;
}
static double* reals(int64_t n) {
  double* data = memory(n * 8);
  for (int64_t i = 0; i < n; ++i) data[i] = real();
  return data;
}
static float* floats(int64_t n) {
  float* data = memory(n * 4);
  for (int64_t i = 0; i < n; ++i) data[i] = (float)real();
  return data;
}
static void* scores(int64_t n, specdec_dtype dtype) {
  if (dtype == SPECDEC_FLOAT32) return floats(n);
  const int64_t size = dtype == SPECDEC_BFLOAT16 || dtype == SPECDEC_FLOAT16 ? 2 : 1;
  uint8_t* data = memory(n * size);
  for (int64_t i = 0; i < n * size; ++i) data[i] = (uint8_t)random_bits();
  return data;
}
// Sums of the nodes of requests, and sometimes anything.
static int32_t* offsets(int64_t requests, int64_t nodes) {
  int32_t* data = memory((requests + 1) * 4);
  for (int64_t b = 0; b <= requests; ++b)
    data[b] = (int32_t)(rarely(15) ? integer(nodes) : nodes * b / (requests ? requests : 1));
  return data;
}
static int32_t* tree(int64_t nodes) {
  int32_t* data = memory(nodes * 4);
  for (int64_t i = 0; i < nodes; ++i) data[i] = (int32_t)(rarely(6) ? integer(nodes) : i % 5 - 1);
  return data;
}

// Spoils a field: no size becomes larger than the memory without being impossible. Fields at [from, to) stay:
// dtypes, and pointers to bytes, which have no alignment that could tell them from wild ones.
static void spoil(void* given, size_t size, size_t from, size_t to) {
  const int64_t values[] = {0, -1, INT64_MAX};
  const size_t at = 8 * (size_t)below((int64_t)size / 8);
  const int64_t value = values[below(3)];
  if (rarely(2) && (at < from || at >= to)) memcpy((char*)given + at, &value, 8);
}

#endif
