// SPDX-License-Identifier: Apache-2.0
// Recurrent states after verification: copied from a snapshot of the last kept node, or rebuilt from the
// inputs of the kept nodes.
#pragma once

#include "path.h"
#include "view.h"

namespace specdec {

void commit_state(const specdec_commit_state_args& args, int threads);
void replay_conv(const specdec_replay_conv_args& args, int threads);
void replay_gated_delta(const specdec_replay_args& args, int threads);
void replay_mamba2(const specdec_replay_args& args, int threads);

}  // namespace specdec
