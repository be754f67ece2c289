// SPDX-License-Identifier: Apache-2.0
// Top-p: the largest scores that hold a share of a row's mass. Weights are added in fixed point, so no order
// of adding matters.
#pragma once

#include <cstdint>
#include <vector>

#include "mass.h"

namespace specdec {

// Scores >= `bar` have this mass, relative to the largest score.
struct Nucleus {
  float bar = -kInf;
  double mass = 0;
};

// A row's mass, and its nucleus where that was found beside it.
struct Weighed {
  Mass whole;  // of the scores >= the cut
  bool found = false;
  Nucleus nucleus;
};

// One pass, which keeps the scores that may be in the nucleus of those >= `cut`. It does not find a nucleus
// of very many scores, or of a row whose first scores tell nothing of the others. `maxima` of chunks may be
// null.
Weighed weigh_nucleus(Worker& worker, const Reader& reader, float slope, float cut, double top_p,
                      std::vector<float>* maxima = nullptr);

// The same nucleus, always, by passes that count. `whole`: the mass of the scores >= weight.cut.
Nucleus select_nucleus(Worker& worker, const Reader& reader, const Weight& weight, double whole,
                       double top_p);

}  // namespace specdec
