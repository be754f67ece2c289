// SPDX-License-Identifier: Apache-2.0
// Trees made of what engines keep.
#pragma once

#include "specdec.h"

namespace specdec {

void enter_chains(const specdec_enter_chains_args& args);
void enter_links(const specdec_enter_links_args& args);

}  // namespace specdec
