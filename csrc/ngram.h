// SPDX-License-Identifier: Apache-2.0
// Prompt lookup: what followed earlier occurrences of the n-gram that a text ends with.
#pragma once

#include "specdec.h"

namespace specdec {

void ngram_draft(const specdec_ngram_draft_args& args, int threads);
void ngram_tree(const specdec_ngram_tree_args& args, int threads);

}  // namespace specdec
