// SPDX-License-Identifier: Apache-2.0
// Edits made in the rows themselves.
#pragma once

#include "specdec.h"

namespace specdec {

void edit_logits(const specdec_edit_logits_args& args, int threads);

}  // namespace specdec
