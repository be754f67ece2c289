// SPDX-License-Identifier: Apache-2.0
// The largest score down to which a row's scores reach an amount: of counts, or of weights in fixed point.
// They are integers, so no order of adding matters.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>

#include "mass.h"

namespace specdec {

// A weight w counts as floor(w * fixed_unit); the weights of a whole row stay below 2^63.
inline double fixed_unit(int64_t vocab) {
  return std::ldexp(1.0, 62 - static_cast<int>(std::ceil(std::log2(static_cast<double>(vocab) + 1.0))));
}
inline uint64_t fixed(float weight, double unit) {
  return static_cast<uint64_t>(static_cast<int64_t>(weight * unit));
}

struct Selected {
  float bar;
  uint64_t amount;  // of the scores >= bar
};

// The largest bar for which the amount of the scores >= it (and >= cut) reaches goal(amount of all of them),
// by histograms of the scores' bits. Amounts are counts where weight is null.
Selected select(Worker& worker, const Reader& reader, float cut, const Weight* weight,
                const std::function<uint64_t(uint64_t)>& goal);

}  // namespace specdec
