// Runs the CUDA kernels of custom_ops/core on the host, one block after the other: include it before the .cu
// file.
//
// Each thread of a block is a coroutine that runs until a barrier or a shuffle. Shared memory starts as NaN,
// is exactly as large as the launch asked for, and the threads take their turns in an order that can be
// chosen: code that lacks a barrier gives NaN or another result in another order. A launch that a device
// would refuse is refused.
#ifndef TFINV_TESTS_NATIVE_CUDA_EMULATOR_H_
#define TFINV_TESTS_NATIVE_CUDA_EMULATOR_H_

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct Dim3 {
  unsigned x, y, z;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

namespace cuda_emulator {

enum class Order { kForward, kBackward, kShuffled };

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kMaxShared = 48 * 1024;

struct Thread {
  enum State { kReady, kAtBarrier, kInShuffle, kDone } state = kReady;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;
  jmp_buf jump;
  bool started = false;
  int shuffles = 0;
};

struct Machine {
  Order order = Order::kForward;
  int64_t launches = 0, blocks = 0;
  size_t largest_shared = 0;
  cudaError_t error = cudaSuccess;

  // Of the block that runs.
  std::vector<std::unique_ptr<Thread>> threads;
  int size = 0, current = 0;
  std::vector<int> arrived;      // lanes of each warp that wait in a shuffle
  std::vector<float> exchanged;  // two buffers: who is late still reads the one before
  std::unique_ptr<float, void (*)(void*)> shared{nullptr, std::free};
  std::function<void()> body;
  ucontext_t scheduler;
  jmp_buf scheduler_jump;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
};
inline Machine machine;

[[noreturn]] inline void Die(const char* why) {
  std::printf("FAILED: emulator: %s\n", why);
  std::fflush(stdout);
  std::_Exit(3);
}

inline Thread& Current() { return *machine.threads[machine.current]; }

// Switches between a thread and the scheduler. Under AddressSanitizer each switch is announced; otherwise
// jumps save the two system calls of swapcontext, which take half of the time.
#if defined(__SANITIZE_ADDRESS__)

inline void Yield() {
  Thread& self = Current();
  __sanitizer_start_switch_fiber(&self.fake_stack, machine.scheduler_bottom, machine.scheduler_size);
  swapcontext(&self.context, &machine.scheduler);
  __sanitizer_finish_switch_fiber(self.fake_stack, &machine.scheduler_bottom, &machine.scheduler_size);
}

inline void Enter() {
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_bottom, &machine.scheduler_size);
  machine.body();
  Current().state = Thread::kDone;
  __sanitizer_start_switch_fiber(nullptr, machine.scheduler_bottom, machine.scheduler_size);
  // Falls off its end into the scheduler.
}

inline void Switch(Thread& thread) {
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, thread.stack.get(), kStackBytes);
  swapcontext(&machine.scheduler, &thread.context);
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
}

#else

inline void Yield() {
  if (_setjmp(Current().jump) == 0) _longjmp(machine.scheduler_jump, 1);
}

inline void Enter() {
  machine.body();
  Current().state = Thread::kDone;
  _longjmp(machine.scheduler_jump, 1);
}

inline void Switch(Thread& thread) {
  if (_setjmp(machine.scheduler_jump) != 0) return;
  if (thread.started) _longjmp(thread.jump, 1);
  thread.started = true;
  setcontext(&thread.context);
}

#endif

inline void Resume(int index) {
  machine.current = index;
  threadIdx = {static_cast<unsigned>(index), 0, 0};
  Switch(*machine.threads[index]);
}

inline void RunBlock(size_t shared_bytes) {
  // A buffer of its own for each block, so that AddressSanitizer sees what is read or written beyond its end.
  const size_t bytes = std::max<size_t>(16, (shared_bytes + 15) / 16 * 16);
  machine.shared.reset(static_cast<float*>(std::aligned_alloc(16, bytes)));
  std::memset(machine.shared.get(), 0xFF, bytes);
  machine.arrived.assign(machine.size / kWarpSize, 0);
  machine.exchanged.assign(2 * machine.size, std::nanf(""));
  for (int n = 0; n < machine.size; ++n) {
    if (static_cast<int>(machine.threads.size()) <= n) machine.threads.push_back(std::make_unique<Thread>());
    Thread& thread = *machine.threads[n];
    thread.state = Thread::kReady;
    thread.shuffles = 0;
    thread.started = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = &machine.scheduler;
    makecontext(&thread.context, Enter, 0);
  }
  std::vector<int> turns(machine.size);
  std::iota(turns.begin(), turns.end(), 0);
  if (machine.order == Order::kBackward) std::reverse(turns.begin(), turns.end());
  std::mt19937 random(1);
  for (;;) {
    if (machine.order == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), random);
    bool moved = false;
    int waiting = 0, done = 0;
    for (size_t turn = 0; turn < turns.size(); ++turn) {
      if (machine.threads[turns[turn]]->state != Thread::kReady) continue;
      Resume(turns[turn]);
      moved = true;
      // The first warp goes as far as it can before the next one, unless the turns are shuffled.
      if (machine.order != Order::kShuffled) turn = turn / kWarpSize * kWarpSize - 1;
    }
    for (int index : turns) {
      waiting += machine.threads[index]->state == Thread::kAtBarrier;
      done += machine.threads[index]->state == Thread::kDone;
    }
    if (done == machine.size) return;
    if (waiting == machine.size) {
      for (int index : turns) machine.threads[index]->state = Thread::kReady;
    } else if (!moved) {
      Die("threads of a block wait for each other in different places");
    }
  }
}

inline void Launch(unsigned grid, int block, size_t shared_bytes, std::function<void()> body) {
  if (grid == 0 || block <= 0 || block > 1024 || block % kWarpSize != 0 || shared_bytes > kMaxShared) {
    machine.error = cudaErrorInvalidConfiguration;
    return;
  }
  machine.body = std::move(body);
  machine.size = block;
  machine.largest_shared = std::max(machine.largest_shared, shared_bytes);
  ++machine.launches;
  machine.blocks += grid;
  blockDim = {static_cast<unsigned>(block), 1, 1};
  gridDim = {grid, 1, 1};
  for (unsigned index = 0; index < grid; ++index) {
    blockIdx = {index, 0, 0};
    RunBlock(shared_bytes);
  }
}

// All lanes give their value and get that of lane `source`, their own where there is no such lane.
inline float Shuffle(unsigned mask, float value, int source) {
  if (mask != 0xffffffffu) Die("only shuffles of whole warps are emulated");
  Thread& self = Current();
  const int warp = machine.current / kWarpSize, lane = machine.current % kWarpSize;
  float* buffer = machine.exchanged.data() + (self.shuffles++ % 2) * machine.size + warp * kWarpSize;
  buffer[lane] = value;
  if (++machine.arrived[warp] < kWarpSize) {
    self.state = Thread::kInShuffle;
    Yield();
  } else {
    machine.arrived[warp] = 0;
    for (int other = 0; other < kWarpSize; ++other) {
      Thread& thread = *machine.threads[warp * kWarpSize + other];
      if (thread.state == Thread::kInShuffle) thread.state = Thread::kReady;
      if (thread.shuffles != self.shuffles) Die("the lanes of a warp are in different shuffles");
    }
  }
  return buffer[source < 0 || source >= kWarpSize ? lane : source];
}

inline int Lane() { return machine.current % kWarpSize; }

// What a tensor core reads of a number.
inline float Tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= 0xffffe000u;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

}  // namespace cuda_emulator

inline void __syncthreads() {
  cuda_emulator::Current().state = cuda_emulator::Thread::kAtBarrier;
  cuda_emulator::Yield();
}
inline float __shfl_sync(unsigned mask, float value, int source) {
  return cuda_emulator::Shuffle(mask, value, source);
}
inline float __shfl_down_sync(unsigned mask, float value, int offset) {
  return cuda_emulator::Shuffle(mask, value, cuda_emulator::Lane() + offset);
}
inline float __shfl_xor_sync(unsigned mask, float value, int flipped) {
  return cuda_emulator::Shuffle(mask, value, cuda_emulator::Lane() ^ flipped);
}

inline void __syncwarp() { __shfl_sync(0xffffffffu, 0.0f, 0); }
inline float __expf(float value) { return std::exp(value); }

namespace tfinv {
namespace cuda {

inline bool tensor_cores = true;
inline bool HasTensorCores() { return tensor_cores; }

inline float RoundToTf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x1000u;
  std::memcpy(&value, &bits, sizeof bits);
  return cuda_emulator::Tf32(value);
}

// Sums are cut off, not rounded, as tensor cores do.
inline void MultiplyAddTf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  using namespace cuda_emulator;
  static std::vector<std::array<float, 6>> all;
  all.resize(std::max<size_t>(all.size(), machine.size));
  all[machine.current] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  __syncwarp();
  const int first = machine.current / kWarpSize * kWarpSize, row = Lane() / 4, column = Lane() % 4;
  for (int n = 0; n < 4; ++n) {
    double sum = c[n];
    for (int k = 0; k < 8; ++k) {
      const float left = all[first + row * 4 + k % 4][k / 4 * 2 + n / 2];
      const float right = all[first + (2 * column + n % 2) * 4 + k % 4][4 + k / 4];
      sum += double(Tf32(left)) * Tf32(right);
    }
    c[n] = static_cast<float>(sum);
    if (std::fabs(c[n]) > std::fabs(sum)) c[n] = std::nextafter(c[n], 0.0f);
  }
  __syncwarp();  // until all have read
}

}  // namespace cuda
}  // namespace tfinv

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

inline cudaError_t cudaGetLastError() { return std::exchange(cuda_emulator::machine.error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return "the emulator refused the launch"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

#define TFINV_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream),                                                   \
   cuda_emulator::Launch(static_cast<unsigned>(grid), block, shared_bytes, [&] { kernel(__VA_ARGS__); }))
#define TFINV_SHARED(name) float* const name = cuda_emulator::machine.shared.get()
// Limits become variables: the tests make them small, to see work looped over and divided.
#define TFINV_LIMIT(name, value) inline int64_t name = value

#endif  // TFINV_TESTS_NATIVE_CUDA_EMULATOR_H_
