// SPDX-License-Identifier: Apache-2.0
// Children of a draft tree's nodes, chosen or sampled from the drafter's law at their parent.
#pragma once

#include "law.h"

namespace specdec {

void sample_children(const specdec_children_args& args, int threads);

}  // namespace specdec
