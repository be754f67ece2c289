// SPDX-License-Identifier: Apache-2.0
// Kernels for any processor; on x86-64 these are SSE2. Also the choice between the tables.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#define SPECDEC_TARGET "baseline"
#include "kernels_inl.h"

namespace specdec {

const Kernels* baseline_kernels() { return &kTable; }

static const Kernels& choose() {
  const Kernels *avx512 = avx512_kernels(), *avx2 = avx2_kernels(), *neon = neon_kernels();
  const char* asked = std::getenv("SPECDEC_ISA");
  if (asked && !std::strcmp(asked, "baseline")) return kTable;
  if (avx512 && !(asked && !std::strcmp(asked, "avx2"))) return *avx512;
  return avx2 ? *avx2 : neon ? *neon : kTable;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace specdec
