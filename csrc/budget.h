// SPDX-License-Identifier: Apache-2.0
// Which nodes of a batch are worth their rows, and what is learned from what became of them.
#pragma once

#include "specdec.h"

namespace specdec {

void select_nodes(const specdec_select_nodes_args& args);
void update_budget(const specdec_update_budget_args& args);

}  // namespace specdec
