// SPDX-License-Identifier: Apache-2.0
// An exception on any thread of a team reaches the caller, and the next call works.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "team.h"

using namespace specdec;

constexpr int64_t kItems = 12, kBlocks = 9;

// Returns the number of blocks that were run.
static int64_t run(int threads, int64_t bad_item, int64_t bad_block) {
  std::atomic<int64_t> done{0};
  Team team(threads);
  team.items(kItems, 2, [&](Worker& worker, int64_t item) {
    if (item == bad_item && bad_block < 0) throw std::runtime_error("item");
    worker.blocks(kBlocks, [&](int64_t block, int) {
      if (item == bad_item && block == bad_block) throw std::runtime_error("block");
      ++done;
    });
  });
  return done;
}

int main(int, char** arguments) {
  const int rounds = std::atoi(arguments[1]);
  for (int round = 0; round < rounds; ++round) {
    const int threads = 1 + round % 4;
    const int64_t bad_item = round % kItems, bad_block = round % (kBlocks + 1) - 1;
    try {
      run(threads, bad_item, bad_block);
      return std::puts("nothing was thrown"), 1;
    } catch (const std::runtime_error&) {
    }
    if (run(threads, -1, -1) != kItems * kBlocks) return std::puts("blocks are missing"), 1;
  }
}
