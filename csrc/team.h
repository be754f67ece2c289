// SPDX-License-Identifier: Apache-2.0
// Threads for one call. Items (requests) are claimed one by one; a thread that finds none left helps the
// others with the vocabulary blocks of the pass they are in. Blocks are fixed by the vocabulary and merged in
// order by their owner, so no result depends on the number of threads. An exception on any of them is the
// caller's.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

namespace specdec {

class Team;

class Worker {
 public:
  Worker(Team& team, int index) : team_(team), index_(index) {}

  // Runs body(block, slot) for every block in [0, count); slot < slots() tells concurrent calls apart.
  template <class Body>
  void blocks(int64_t count, Body&& body) {
    run(
        count, [](void* context, int64_t block, int slot) { (*static_cast<Body*>(context))(block, slot); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
  int slots() const;
  int slot() const { return index_; }  // of this worker's own calls

  using Call = void (*)(void* context, int64_t block, int slot);

 private:
  void run(int64_t count, Call call, void* context);

  Team& team_;
  int index_;
};

class Team {
 public:
  explicit Team(int threads) : slots_(std::make_unique<Slot[]>(threads)), threads_(threads) {}

  // Runs body(worker, item) for every item in [0, items), `grain` of them at a time.
  template <class Body>
  void items(int64_t items, int64_t grain, Body&& body) {
    start(
        items, grain,
        [](void* context, Worker& worker, int64_t item) { (*static_cast<Body*>(context))(worker, item); },
        &body);
  }

 private:
  friend class Worker;
  using Call = void (*)(void* context, Worker& worker, int64_t item);

  // The pass a worker has open. Fields other than the atomics change only while it is closed and without
  // helpers.
  struct alignas(64) Slot {
    std::atomic<bool> open{false};
    std::atomic<int> helpers{0};
    std::atomic<int64_t> next{0};
    int64_t count = 0;
    Worker::Call call = nullptr;
    void* context = nullptr;
  };

  void start(int64_t items, int64_t grain, Call call, void* context);
  void work(int index);
  bool help(int index);
  bool run_blocks(Slot& slot, int index);
  void fail();

  std::unique_ptr<Slot[]> slots_;
  int threads_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr thrown_;
  int64_t items_ = 0, grain_ = 1;
  Call call_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace specdec
