// SPDX-License-Identifier: Apache-2.0
// Counts of the tokens of each slot: what a step emitted is entered.
#pragma once

#include "specdec.h"

namespace specdec {

void count_tokens(const specdec_count_tokens_args& args);

}  // namespace specdec
