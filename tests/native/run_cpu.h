// Runs of the CPU core on guarded buffers, and the thread pools to run it on.
#ifndef TFINV_TESTS_NATIVE_RUN_CPU_H_
#define TFINV_TESTS_NATIVE_RUN_CPU_H_

#include <cstdlib>
#include <deque>
#include <memory>
#include <thread>

#include "cases.h"

// There if the program is linked with AddressSanitizer; this file itself may be compiled without.
extern "C" {
void __asan_poison_memory_region(const volatile void* address, size_t size) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void* address, size_t size) __attribute__((weak));
}

namespace tfinv {
namespace testing {

// ---------------------------------------------------------------------------------------------------------
// Thread pools.

// Workers that take from a queue; together with the caller `threads` of them.
class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this] { Work(); });
  }
  Pool(const Pool&) = delete;
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  Executor Lend() {
    return {threads_, [this](std::function<void()> task) {
              {
                std::lock_guard<std::mutex> lock(mutex_);
                tasks_.push_back(std::move(task));
              }
              changed_.notify_one();
            }};
  }

 private:
  void Work() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  int threads_;
  bool closed_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> workers_;
};

// ---------------------------------------------------------------------------------------------------------
// A run of the core.

// Floats between two guards. Everything starts as NaN: what is read outside, or added to before it is set,
// shows in the results; what is written outside shows in the guards (or stops the program, under ASan).
class Buffer {
 public:
  // `offset` floats away from a boundary of 64 bytes; `values` are copied if given.
  Buffer(size_t count, size_t offset, const std::vector<float>* values = nullptr)
      : before_(kGuard + offset * sizeof(float)),
        bytes_(count * sizeof(float)),
        total_((before_ + bytes_ + kGuard + 63) / 64 * 64),
        memory_(static_cast<unsigned char*>(std::aligned_alloc(64, total_))) {
    std::memset(memory_, 0xFF, total_);
    if (values != nullptr && bytes_ > 0) std::memcpy(data(), values->data(), bytes_);
    if (__asan_poison_memory_region == nullptr) return;
    __asan_poison_memory_region(memory_, before_);
    __asan_poison_memory_region(memory_ + before_ + bytes_, total_ - before_ - bytes_);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
    Unpoison();
    std::free(memory_);
  }

  float* data() { return reinterpret_cast<float*>(memory_ + before_); }
  std::vector<float> Values() { return {data(), data() + bytes_ / sizeof(float)}; }

  bool GuardsIntact() {
    Unpoison();
    const auto untouched = [](unsigned char byte) { return byte == 0xFF; };
    return std::all_of(memory_, memory_ + before_, untouched) &&
           std::all_of(memory_ + before_ + bytes_, memory_ + total_, untouched);
  }

 private:
  void Unpoison() {
    if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(memory_, total_);
  }

  static constexpr size_t kGuard = 128;
  size_t before_, bytes_, total_;
  unsigned char* memory_;
};

// The buffers of one run: inputs, which must not change, and outputs.
class Arena {
 public:
  Arena(std::string name, size_t offset) : name_(std::move(name)), offset_(offset) {}

  const float* In(const std::vector<float>& values) {
    inputs_.push_back({&values, std::make_unique<Buffer>(values.size(), offset_, &values)});
    return inputs_.back().second->data();
  }
  const float* InOrNull(const std::vector<float>& values) { return values.empty() ? nullptr : In(values); }
  float* Out(std::vector<float>& into, size_t count) {
    outputs_.push_back({&into, std::make_unique<Buffer>(count, offset_)});
    return outputs_.back().second->data();
  }
  float* OutOrNull(std::vector<float>& into, size_t count) { return count == 0 ? nullptr : Out(into, count); }

  void Finish() {
    for (auto& [values, buffer] : inputs_) {
      if (!buffer->GuardsIntact()) Fail("%s: wrote around an input", name_.c_str());
      const size_t bytes = values->size() * sizeof(float);
      if (bytes > 0 && std::memcmp(values->data(), buffer->data(), bytes) != 0)
        Fail("%s: changed an input", name_.c_str());
    }
    for (auto& [into, buffer] : outputs_) {
      if (!buffer->GuardsIntact()) Fail("%s: wrote around an output", name_.c_str());
      *into = buffer->Values();
    }
  }

 private:
  std::string name_;
  size_t offset_;
  std::vector<std::pair<const std::vector<float>*, std::unique_ptr<Buffer>>> inputs_;
  std::vector<std::pair<std::vector<float>*, std::unique_ptr<Buffer>>> outputs_;
};

inline DynamicCase::Results Run(const DynamicCase& problem, const Executor& executor, size_t offset = 1) {
  const DynamicDims& dims = problem.dims;
  const auto& in = problem.inputs;
  const size_t size = dims.batch * dims.parents * dims.parent_dim;
  DynamicCase::Results out;
  Arena forward(problem.Name() + " forward", offset), backward(problem.Name() + " backward", offset);
  DynamicForward(dims, forward.In(in.poses), forward.In(in.weights), forward.InOrNull(in.bias),
                 forward.Out(out.outputs, size), forward.Out(out.sums, dims.iterations * size), executor);
  forward.Finish();
  DynamicBackward(dims, backward.In(in.poses), backward.In(in.weights), backward.InOrNull(in.bias),
                  backward.In(out.sums), backward.In(in.doutputs), backward.Out(out.dposes, in.poses.size()),
                  backward.Out(out.dweights, in.weights.size()),
                  backward.OutOrNull(out.dbias, in.bias.size()), executor);
  backward.Finish();
  return out;
}

inline EmCase::Results Run(const EmCase& problem, const Executor& executor, size_t offset = 1) {
  const EmDims dims = problem.Dims();
  const auto& in = problem.inputs;
  const size_t rows = dims.batch * dims.parents, size = dims.pose_size * dims.pose_size;
  EmCase::Results out;
  Arena forward(problem.Name() + " forward", offset), backward(problem.Name() + " backward", offset);
  EmForward(dims, forward.In(in.poses), forward.In(in.activations), forward.In(in.weights),
            forward.In(in.beta_u), forward.In(in.beta_a), forward.InOrNull(in.bias),
            forward.Out(out.outputs, rows * size), forward.Out(out.output_activations, rows),
            forward.Out(out.statistics, dims.iterations * rows * (2 * size + 1)), executor);
  forward.Finish();
  EmBackward(dims, backward.In(in.poses), backward.In(in.activations), backward.In(in.weights),
             backward.In(in.beta_u), backward.In(in.beta_a), backward.InOrNull(in.bias),
             backward.In(out.statistics), backward.In(in.doutputs), backward.In(in.doutput_activations),
             backward.Out(out.dposes, in.poses.size()), backward.Out(out.dactivations, in.activations.size()),
             backward.Out(out.dweights, in.weights.size()), backward.Out(out.dbeta_u, in.beta_u.size()),
             backward.Out(out.dbeta_a, in.beta_a.size()), backward.OutOrNull(out.dbias, in.bias.size()),
             executor);
  backward.Finish();
  return out;
}

}  // namespace testing
}  // namespace tfinv

#endif  // TFINV_TESTS_NATIVE_RUN_CPU_H_
