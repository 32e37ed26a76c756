// What every routing kernel shares: launches, lanes that stand for parents, reductions in a fixed order.
//
// A warp holds `groups` samples of `width` parents each: with J <= 32 parents a group is a whole sample and
// its softmax is a few shuffles; with more, a group is one tile of 32 parents, and the sums over all of them
// come from an earlier launch. Reductions have a fixed order, so that results repeat bit for bit.
#ifndef TFINV_CUSTOM_OPS_CORE_CUDA_COMMON_CUH_
#define TFINV_CUSTOM_OPS_CORE_CUDA_COMMON_CUH_

#include <cfloat>
#include <climits>
#include <cstdint>

#include "routing.h"

#ifndef TFINV_LAUNCH  // the tests define it, and run the same kernels on the host
#include <cuda_runtime.h>
#define TFINV_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<static_cast<unsigned>(grid), block, shared, stream>>>(__VA_ARGS__)
#define TFINV_SHARED(name) extern __shared__ __align__(16) float name[]
#define TFINV_LIMIT(name, value) constexpr int64_t name = value

namespace tfinv {
namespace cuda {

// Matrix products m16n8k8 of a warp on tensor cores: c += a b. Of a and b the lowest 13 bits are not read.
// Lane 4 g + t holds a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4]; b[t, g], b[t + 4, g]; c[g, 2 t],
// c[g, 2 t + 1], c[g + 8, 2 t], c[g + 8, 2 t + 1].
__device__ inline void MultiplyAddTf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#elif defined(__CUDA_ARCH__)
  __trap();  // HasTensorCores keeps older cards away
#endif
}

// To the nearest number with 11 bits.
__device__ inline float RoundToTf32(float value) {
  return __uint_as_float((__float_as_uint(value) + 0x1000u) & 0xffffe000u);
}

// Whether the current device multiplies in TF32: Ampere and later.
inline bool HasTensorCores() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 8;
}

}  // namespace cuda
}  // namespace tfinv
#endif

namespace tfinv {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxThreads = 256;
// Enough blocks for four on each multiprocessor of the largest card known; a constant, and not asked of the
// device, so that the order of the sums is the same on every card with, and on every one without, tensor cores.
TFINV_LIMIT(kTargetBlocks, 576);
TFINV_LIMIT(kMultiprocessors, 132);  // of a large card: a constant for the same reason
TFINV_LIMIT(kMaxBlocks, 1 << 20);  // more work than that is looped over
TFINV_LIMIT(kPartialBytes,
            64 << 20);  // more partial sums, or scratch, than that is not worth the blocks it gives
constexpr int64_t kSharedBytes = 48 * 1024;  // what every card grants without being asked
constexpr int kRowThreads = 128;

inline __host__ __device__ int64_t CeilDiv(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}
inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }

// How samples and parents lie on the lanes of a block.
struct Lanes {
  int width;   // parents of a group, at most 32
  int groups;  // groups of a warp
  int warps;   // warps of a block
  int parent_tiles;

  __host__ __device__ bool Wide() const { return parent_tiles > 1; }
  __host__ __device__ int Slots() const { return warps * groups; }  // samples of a block
};

inline Lanes MakeLanes(int64_t parents, int warps) {
  Lanes lanes;
  lanes.width = static_cast<int>(Least(parents, kWarp));
  lanes.groups = kWarp / lanes.width;
  lanes.warps = warps;
  lanes.parent_tiles = static_cast<int>(CeilDiv(parents, lanes.width));
  return lanes;
}

// One thread's place: which sample slot of the block, which parent of the tile.
struct Place {
  int rank, first, width, slot;
  bool used;  // lanes left over at the end of a warp only take part in shuffles

  __device__ explicit Place(const Lanes& lanes) {
    const int lane = threadIdx.x % kWarp, group = lane / lanes.width;
    width = lanes.width;
    first = group * width;
    rank = lane - first;
    used = group < lanes.groups;
    slot = threadIdx.x / kWarp * lanes.groups + (used ? group : 0);
  }
};

// The larger of both, and NaN if the value is, unlike fmaxf.
__device__ inline float AtLeast(float floor, float value) { return value < floor ? floor : value; }

struct Maximum {
  __device__ static float Of(float a, float b) { return fmaxf(a, b); }
};
struct Sum {
  __device__ static float Of(float a, float b) { return a + b; }
};

// Reduces over the lanes of a group; every lane gets the result. All lanes of the warp must call it.
template <class Op>
__device__ float ReduceGroup(float value, const Place& place) {
  for (int offset = kWarp / 2; offset > 0; offset >>= 1) {
    if (offset >= place.width) continue;
    const float other = __shfl_down_sync(kAllLanes, value, offset);
    if (place.rank + offset < place.width) value = Op::Of(value, other);
  }
  return __shfl_sync(kAllLanes, value, place.first);
}

template <class Op>
__device__ float ReduceWarp(float value) {
  for (int offset = kWarp / 2; offset > 0; offset >>= 1)
    value = Op::Of(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// Log softmax over a group. The maximum goes first: a logit of 1e9 less its log-sum-exp would hold no
// fraction.
__device__ inline float GroupLogSoftmax(float logit, const Place& place) {
  const float shifted = logit - ReduceGroup<Maximum>(logit, place);
  return shifted - logf(ReduceGroup<Sum>(expf(shifted), place));
}

// N floats in registers, or, with N = 0, any number of them where they lie.
template <int N>
struct Vector {
  float x[N];
  __device__ void Load(const float* row) {
#pragma unroll
    for (int n = 0; n < N; n += 4) {  // rows are of the workspace or checked: 16-byte aligned
      const float4 four = *reinterpret_cast<const float4*>(row + n);
      x[n] = four.x, x[n + 1] = four.y, x[n + 2] = four.z, x[n + 3] = four.w;
    }
  }
  __device__ float operator[](int n) const { return x[n]; }
};
template <>
struct Vector<0> {
  const float* x;
  __device__ void Load(const float* row) { x = row; }
  __device__ float operator[](int n) const { return x[n]; }
};

// N sums in registers, stored at the end; with N = 0 they grow in memory that is this thread's alone.
template <int N>
struct Sums {
  float x[N];
  __device__ void Begin(float*, int, bool) {
#pragma unroll
    for (int n = 0; n < N; ++n) x[n] = 0.0f;
  }
  __device__ void End(float* row, bool used) const {
    if (!used) return;
#pragma unroll
    for (int n = 0; n < N; ++n) row[n] = x[n];
  }
  __device__ float& operator[](int n) { return x[n]; }
};
template <>
struct Sums<0> {
  float* x;
  __device__ void Begin(float* row, int size, bool used) {
    x = row;
    if (!used) return;
    for (int n = 0; n < size; ++n) x[n] = 0.0f;
  }
  __device__ void End(float*, bool) const {}
  __device__ float& operator[](int n) { return x[n]; }
};

inline bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Launches in sequence and keeps the first refusal.
struct Stream {
  cudaStream_t stream;
  const char* error = nullptr;

  explicit Stream(void* handle) : stream(static_cast<cudaStream_t>(handle)) {
    cudaGetLastError();  // an older error, of somebody else's call, is not ours to report
  }
  template <class... Parameters, class... Arguments>
  void Launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
              const Arguments&... arguments) {
    if (error || blocks <= 0) return;
    const int64_t grid = Least(blocks, kMaxBlocks);
    TFINV_LAUNCH(kernel, grid, threads, static_cast<size_t>(shared_bytes), stream, arguments...);
    const cudaError_t code = cudaGetLastError();
    if (code != cudaSuccess) error = cudaGetErrorString(code);
  }
  void Zero(float* values, int64_t count) {
    if (error || !values || count <= 0) return;
    const cudaError_t code = cudaMemsetAsync(values, 0, static_cast<size_t>(count) * sizeof(float), stream);
    if (code != cudaSuccess) error = cudaGetErrorString(code);
  }
};

// Hands out pieces of the workspace; with a null base it only counts.
struct Workspace {
  char* base;
  size_t used = 0;

  explicit Workspace(void* memory) : base(static_cast<char*>(memory)) {}
  float* Take(int64_t floats) {
    float* piece = base ? reinterpret_cast<float*>(base + used) : nullptr;
    used += static_cast<size_t>(CeilDiv(floats, 64)) * 256;
    return piece;
  }
};

// Small passes give a warp to each row.
__device__ inline int64_t WarpIndex() { return (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / kWarp; }
__device__ inline int64_t WarpCount() { return gridDim.x * int64_t{blockDim.x} / kWarp; }
inline int64_t RowBlocks(int64_t rows) { return CeilDiv(rows, kMaxThreads / kWarp); }

// The sum over parts of partial[part, at], in order.
__device__ inline float SumOfParts(const float* partial, int64_t parts, int64_t size, int64_t at) {
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + at];
  return sum;
}

// out[n] = sum over parts of partial[part, n], in order; four columns a thread where that is possible.
static __global__ void SumPartsKernel(const float* partial, int64_t parts, int64_t size, float* out) {
  const int64_t first = blockIdx.x * int64_t{kMaxThreads} + threadIdx.x;
  const int64_t threads = gridDim.x * int64_t{kMaxThreads};
  if (size % 4 != 0) {
    for (int64_t n = first; n < size; n += threads) out[n] = SumOfParts(partial, parts, size, n);
    return;
  }
  for (int64_t n = first; n < size / 4; n += threads) {
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
    for (int64_t part = 0; part < parts; ++part) {
      const float4 four = reinterpret_cast<const float4*>(partial + part * size)[n];
      sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
    }
    float* target = out + 4 * n;  // which need not lie at 16 bytes
    target[0] = sum.x, target[1] = sum.y, target[2] = sum.z, target[3] = sum.w;
  }
}

inline void LaunchSumParts(Stream& stream, const float* partial, int64_t parts, int64_t size, float* out) {
  stream.Launch(&SumPartsKernel, CeilDiv(CeilDiv(size, 4), kMaxThreads), kMaxThreads, 0, partial, parts, size,
                out);
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_CUDA_COMMON_CUH_
