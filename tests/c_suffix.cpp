// SPDX-License-Identifier: Apache-2.0
// A writer that adds, finishes, removes and evicts, beside threads that draft and list. Arguments: rounds.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include "suffix_index.h"

using namespace specdec;

static void draft_until(const SuffixIndex& index, const std::atomic<bool>& done, std::atomic<bool>& wrong) {
  constexpr int64_t kNodes = 16;
  const double trust[] = {0.2, 0.5, 0.9};
  const int64_t requests[] = {0, 0};
  int64_t tokens[2 * kNodes];
  int32_t parents[2 * kNodes], cu_nodes[3];
  uint8_t proposals[2 * kNodes];
  float scores[2 * kNodes];
  const SuffixDraft args{kNodes, kNodes - 1, 64, 2, trust, 3, tokens, parents, cu_nodes, proposals, scores};
  do {
    index.draft(requests, 2, args, 2);
    for (int64_t i = 0; i < kNodes; ++i) {
      const bool used = scores[i] > -1e30f;
      wrong = wrong || tokens[i] != tokens[kNodes + i] || parents[i] >= (i ? i : 0) ||
              (used ? tokens[i] < 0 || tokens[i] > 3 : tokens[i] != -1);
    }
    int64_t running = 0;
    for (const auto& text : index.list()) running += text.running;
    wrong = wrong || running < 1 || index.bytes() <= 0;
  } while (!done);
}

int main(int, char** arguments) {
  const int rounds = std::atoi(arguments[1]);
  SuffixIndex index(1 << 20);
  const std::vector<std::string> names = {"a", "b"};
  uint32_t random = 1;
  const auto next = [&random] { return (random = random * 1664525u + 1013904223u) >> 16; };
  std::vector<int64_t> text(3000);
  const int64_t size = static_cast<int64_t>(text.size());
  const auto write = [&](int64_t request, int64_t count) {
    for (int64_t& token : text) token = next() % 4;
    index.extend(&request, 1, text.data(), size, &count);
  };
  index.add(0, "a", names);
  write(0, 200);
  std::atomic<bool> done{false}, wrong{false};
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) readers.emplace_back([&] { draft_until(index, done, wrong); });
  std::vector<uint16_t> corpus(500);
  int64_t refused = 0;
  for (int64_t round = 1; round <= rounds; ++round) {
    index.add(round, names[next() % 2], names);
    write(round, next() % (size + 1));
    if (next() % 8 == 0) write(0, next() % 50);
    for (uint16_t& token : corpus) token = static_cast<uint16_t>(next() % 4);
    const int64_t loaded = index.load(names[next() % 2], corpus.data(), TokenDType::kUint16, 500);
    index.finish(round);
    if (next() % 4 == 0) index.remove(round);
    index.unload(loaded);
    try {
      write(round, 1);
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
  if (wrong || refused != rounds) return std::puts("a draft or an error is wrong"), 1;
}
