// SPDX-License-Identifier: Apache-2.0
// Kept rows of paged caches move to the slots right after the prefix. Bytes are moved, never read as numbers.
#pragma once

#include "path.h"

namespace specdec {

void commit_kv(const specdec_commit_args& args, int threads);

}  // namespace specdec
