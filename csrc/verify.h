// SPDX-License-Identifier: Apache-2.0
// Verification of a batch of draft trees. The mathematics is in docs/verification.md; the names here are its
// names.
#pragma once

#include "request.h"

namespace specdec {

void verify(const VerifyArgs& args, int threads);
void sample(const specdec_sample_args& args, int threads);

}  // namespace specdec
