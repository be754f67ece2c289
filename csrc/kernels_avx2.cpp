// SPDX-License-Identifier: Apache-2.0
// Kernels for AVX2; a null table where the compiler or the processor has none.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

#define SPECDEC_TARGET "avx2"
#define SPECDEC_AVX2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "kernels_inl.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace specdec {
static bool has_f16c() {  // clang 14 cannot ask for it by name
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

const Kernels* avx2_kernels() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() ? &kTable : nullptr;
}
}  // namespace specdec

#else
namespace specdec {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace specdec
#endif
