// SPDX-License-Identifier: Apache-2.0
#include "team.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace specdec {
namespace {

// The threads of the OpenMP library that the process has loaded, which PyTorch computes with. They spin for a
// while after each of its operations: they are awake at once, while other threads would share their cores.
class OpenMP {
 public:
  OpenMP()
      : parallel_(reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))),
        index_(reinterpret_cast<Index>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"))) {}

  bool is_there() const { return parallel_ && index_; }

  // Runs job(0) here and job(1) ... on as many of the other threads as the library grants.
  void run(int threads, const std::function<void(int)>& job) const {
    struct Call {
      const std::function<void(int)>& job;
      Index index;
    } call{job, index_};
    const auto body = [](void* context) {
      const Call& call = *static_cast<Call*>(context);
      call.job(call.index());
    };
    parallel_(body, &call, static_cast<unsigned>(threads), 0);
  }

 private:
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  using Index = int (*)();
  Parallel parallel_;
  Index index_;
};

// The threads of the process, shared by all calls: OpenMP's, or parked ones. A call that finds them busy runs
// alone, with the same result.
class Pool {
 public:
  // OpenMP's threads do not outlive a fork, and their library does not notice.
  explicit Pool(bool forked) : openmp_(!forked && OpenMP().is_there()) {}

  // Runs job(0) here and job(1) ... job(threads - 1) on threads that wake in time. Jobs throw nothing.
  void run(int threads, const std::function<void(int)>& job) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (threads <= 1 || !turn.owns_lock()) return job(0);
    if (openmp_) return OpenMP().run(threads, job);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start_threads(threads - 1);
      job_ = &job;
      wanted_ = threads;
      ++generation_;
    }
    wake_.notify_all();
    job(0);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    left_.wait(lock, [this] { return working_ == 0; });
  }

 private:
  // Where the system grants fewer, those do.
  void start_threads(int wanted) {
    try {
      for (; parked_ < wanted; ++parked_) std::thread([this, index = parked_ + 1] { park(index); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void park(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && generation_ != seen && index < wanted_; });
      seen = generation_;
      const auto* job = job_;
      ++working_;
      lock.unlock();
      (*job)(index);
      lock.lock();
      if (--working_ == 0) left_.notify_one();
    }
  }

  const bool openmp_;
  std::mutex turn_, mutex_;
  std::condition_variable wake_, left_;
  const std::function<void(int)>* job_ = nullptr;
  uint64_t generation_ = 0;
  int wanted_ = 0, working_ = 0, parked_ = 0;
};

// Never destroyed: parked threads may outlive static destruction. A forked child has none of the threads and
// starts anew.
Pool* pool = new Pool(false);
[[maybe_unused]] const int watched = pthread_atfork(nullptr, nullptr, [] { pool = new Pool(true); });

struct Stopped {};  // thrown in a team that has failed

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

int Worker::slots() const { return team_.threads_; }

void Worker::run(int64_t count, Call call, void* context) {
  Team::Slot& slot = team_.slots_[index_];
  if (team_.threads_ == 1 || count == 1) {
    for (int64_t block = 0; block < count; ++block) call(context, block, index_);
    return;
  }
  slot.count = count;
  slot.call = call;
  slot.context = context;
  slot.next.store(0);
  slot.open.store(true);
  team_.run_blocks(slot, index_);
  slot.open.store(false);
  while (slot.helpers.load() != 0) pause();  // they use what `context` points to, also where a block threw
  if (team_.failed_.load()) throw Stopped{};
}

// An exception stops the team, whichever thread it is on. The first is thrown again by `start`.
void Team::fail() {
  if (!failed_.exchange(true)) thrown_ = std::current_exception();
}

bool Team::run_blocks(Slot& slot, int index) {
  bool any = false;
  try {
    for (int64_t block; (block = slot.next.fetch_add(1)) < slot.count && !failed_.load(); any = true)
      slot.call(slot.context, block, index);
  } catch (...) {
    fail();
  }
  return any;
}

bool Team::help(int index) {
  bool helped = false;
  for (int other = 0; other < threads_; ++other) {
    Slot& slot = slots_[other];
    if (other == index || !slot.open.load(std::memory_order_relaxed)) continue;
    slot.helpers.fetch_add(1);
    if (slot.open.load()) helped |= run_blocks(slot, index);
    slot.helpers.fetch_sub(1);
  }
  return helped;
}

void Team::work(int index) {
  Worker worker(*this, index);
  for (int64_t first; (first = next_.fetch_add(grain_)) < items_;) {
    const int64_t last = std::min(first + grain_, items_);
    try {
      for (int64_t item = first; item < last && !failed_.load(); ++item) call_(context_, worker, item);
    } catch (...) {
      fail();
    }
    done_.fetch_add(last - first);
  }
  while (done_.load() < items_)
    if (!help(index)) pause();
}

void Team::start(int64_t items, int64_t grain, Call call, void* context) {
  items_ = items;
  grain_ = grain;
  call_ = call;
  context_ = context;
  pool->run(threads_, [this](int index) { work(index); });
  if (thrown_) std::rethrow_exception(thrown_);
}

}  // namespace specdec
