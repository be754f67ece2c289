// SPDX-License-Identifier: Apache-2.0
// Kernels for AVX512; a null table where the compiler or the processor has none.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12 warns inside its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#define SPECDEC_TARGET "avx512"
#define SPECDEC_AVX512
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#include "kernels_inl.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace specdec {
const Kernels* avx512_kernels() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
             ? &kTable
             : nullptr;
}
}  // namespace specdec

#else
namespace specdec {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace specdec
#endif
