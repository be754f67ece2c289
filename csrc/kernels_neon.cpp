// SPDX-License-Identifier: Apache-2.0
// Kernels for NEON, which every 64-bit Arm processor has; a null table elsewhere.
#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define SPECDEC_TARGET "neon"
#define SPECDEC_NEON
#include "kernels_inl.h"

namespace specdec {
const Kernels* neon_kernels() { return &kTable; }
}  // namespace specdec

#else
namespace specdec {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace specdec
#endif
