// Runs independent tasks on whatever threads the host framework lends.
#ifndef TFINV_CUSTOM_OPS_CORE_PARALLEL_H_
#define TFINV_CUSTOM_OPS_CORE_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace tfinv {

// A thread pool seen from the core. `schedule` may run its argument at any later time, or never start it
// before others end: the calling thread can finish all work alone.
struct Executor {
  int threads = 1;
  std::function<void(std::function<void()>)> schedule;
};

// Calls task(0) ... task(count - 1), each once, in any order and on any thread; returns when all are done, or
// then throws what one of them threw, such as std::bad_alloc: no thread of the host may see it.
//
// Threads begin at both ends by turns, so that two of them do not read what neighbouring tasks share, such as
// weights, at the same time and each into a cache of its own.
inline void ParallelFor(const Executor& executor, int64_t count, std::function<void(int64_t)> task) {
  if (count <= 0) return;
  const int64_t helpers = executor.schedule ? std::min<int64_t>(executor.threads, count) - 1 : 0;
  if (helpers <= 0) {
    for (int64_t index = 0; index < count; ++index) task(index);
    return;
  }
  struct State {
    std::function<void(int64_t)> task;
    int64_t count;
    std::atomic<int64_t> workers{0}, begun{0}, from_first{0}, from_last{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
    std::exception_ptr thrown;
  };
  // Shared: a helper that starts late finds no task left and touches nothing but this.
  auto state = std::make_shared<State>();
  state->task = std::move(task);
  state->count = count;
  auto work = [state] {
    const bool ascending = state->workers.fetch_add(1) % 2 == 0;
    while (state->begun.fetch_add(1) < state->count) {
      const int64_t index =
          ascending ? state->from_first.fetch_add(1) : state->count - 1 - state->from_last.fetch_add(1);
      try {
        state->task(index);
      } catch (...) {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->thrown = std::current_exception();
      }
      if (state->done.fetch_add(1) + 1 == state->count) {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->finished.notify_all();
      }
    }
  };
  try {
    for (int64_t helper = 0; helper < helpers; ++helper) executor.schedule(work);
  } catch (...) {  // fewer helpers, then; those that were scheduled may be at work on the caller's data
  }
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done.load() == state->count; });
  if (state->thrown) std::rethrow_exception(state->thrown);
}

}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_PARALLEL_H_
