// SPDX-License-Identifier: Apache-2.0
#include "counts.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace specdec {
namespace {

constexpr int32_t kMostTimes = std::numeric_limits<int32_t>::max();

int32_t more(int32_t times, int64_t by) {
  return static_cast<int32_t>(std::min<int64_t>(std::max(times, 0) + by, kMostTimes));
}

void remember(int64_t* recent, int64_t width, const std::vector<int64_t>& emitted) {
  const int64_t fresh = std::min<int64_t>(width, static_cast<int64_t>(emitted.size())), old = width - fresh;
  std::memmove(recent, recent + fresh, old * sizeof *recent);
  std::copy(emitted.end() - fresh, emitted.end(), recent + old);
}

// The entries of one slot.
struct Slot {
  int32_t *tokens, *prompt, *output, *size;
  int64_t capacity;

  // Enters ascending tokens; what does not fit marks the slot, and changes no entry.
  void enter(const std::vector<int64_t>& emitted) {
    int64_t used = std::max(*size, 0), fresh = 0;
    if (used > capacity) return;
    for (size_t i = 0; i < emitted.size(); ++i)
      fresh += (i == 0 || emitted[i] != emitted[i - 1]) &&
               !std::binary_search(tokens, tokens + used, static_cast<int32_t>(emitted[i]));
    if (used + fresh > capacity) {
      *size = static_cast<int32_t>(capacity + 1);
      return;
    }
    *size = static_cast<int32_t>(used + fresh);
    // From the last to the first: entries move once, by as many places as new tokens stand before them.
    for (size_t last = emitted.size(); last > 0;) {
      const int64_t token = emitted[last - 1];
      size_t first = last - 1;
      while (first > 0 && emitted[first - 1] == token) --first;
      const int64_t count = static_cast<int64_t>(last - first);
      last = first;
      const int64_t place = std::lower_bound(tokens, tokens + used, static_cast<int32_t>(token)) - tokens;
      if (place < used && tokens[place] == token) {
        output[place] = more(output[place], count);
        continue;
      }
      if (fresh == 0) return;  // only where the entries did not ascend
      move(place, used, fresh);
      used = place;
      --fresh;
      tokens[place + fresh] = static_cast<int32_t>(token);
      prompt[place + fresh] = 0;
      output[place + fresh] = more(0, count);
    }
  }

  void move(int64_t begin, int64_t end, int64_t by) {
    for (int32_t* column : {tokens, prompt, output})
      std::memmove(column + begin + by, column + begin, (end - begin) * sizeof *column);
  }
};

}  // namespace

void count_tokens(const specdec_count_tokens_args& a) {
  std::vector<int64_t> emitted;
  for (int64_t b = 0; b < a.requests; ++b) {
    const int64_t slot = a.request_slots ? a.request_slots[b] : b;
    if (slot < 0 || slot >= a.slots) continue;
    const int64_t count = a.num_tokens ? std::clamp<int64_t>(a.num_tokens[b], 0, a.width) : a.width;
    emitted.clear();
    for (int64_t i = b * a.width; i < b * a.width + count; ++i) {
      const int64_t token = a.tokens_are_int32 ? static_cast<const int32_t*>(a.tokens)[i]
                                               : static_cast<const int64_t*>(a.tokens)[i];
      if (token >= 0 && token < a.vocab) emitted.push_back(token);
    }
    if (a.recent_width) remember(a.recent + slot * a.recent_width, a.recent_width, emitted);
    std::sort(emitted.begin(), emitted.end());
    const int64_t first = slot * a.capacity;
    Slot{a.count_tokens + first, a.count_prompt + first, a.count_output + first, a.count_sizes + slot,
         a.capacity}
        .enter(emitted);
  }
}

}  // namespace specdec
