// EM routing of poses of 4 x 4 and at most 32 parents: what EM networks are made of, so it has passes of its
// own. em_cuda_steps.cuh and cuda_routing.cuh have those for any other size. The maths is in routing.h.
//
// A tile is what one warp works on: `kGroups` samples of `kWidth` >= J lanes, a lane for each parent; lanes
// without a parent or a sample repeat the last one, and nobody else reads what they write. Everything that belongs to
// a lane lies in the workspace as [tile][value][lane], the arrays of 16 as [tile][quad][lane][4]: a warp
// reads and writes whole lines.
//   state    mean, precision, scale [16 each], constant, logmass, loga, half
//   adjoint  dmean, dvariance [16 each], dlogmass - sum over h of (variance - floor) dvariance
// Logarithms of couplings are to the base 2, which is what the hardware has: precision = log2(e) / 2 /
// variance, scale is its root, constant = log2(e) (loga - half) and logmass as well; loga and half, half the
// sum of log variance, are natural.
#ifndef TFINV_CUSTOM_OPS_CORE_EM_CUDA_TILES_CUH_
#define TFINV_CUSTOM_OPS_CORE_EM_CUDA_TILES_CUH_

#include "cuda_plan.cuh"

namespace tfinv {
namespace cuda {


constexpr int kH = 16;  // components of a vote, of a pose and of a weight matrix
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

constexpr int kMean = 0, kPrecision = kH, kScale = 2 * kH, kStateScalars = 3 * kH;
constexpr int kConstantAt = kStateScalars, kLogMassAt = kStateScalars + 1,
              kLogActivationAt = kStateScalars + 2, kHalfAt = kStateScalars + 3;
constexpr int kStateFloats = (kStateScalars + 4) * kWarp;
constexpr int kDmean = 0, kDvariance = kH, kDlogCouplingAt = 2 * kH;
constexpr int kAdjointFloats = (2 * kH + 1) * kWarp;
constexpr int kMomentFloats = (2 * kH + 2) * kWarp;  // mean, squares [16 each], reference, weight
constexpr int kStatistics = 2 * kH + 1;              // of a row of the statistics
constexpr int kMatrixStride = kH + 4;                // the lanes of a quarter warp then meet no bank twice

// One instruction each, good to 2^-22, of a logarithm near 0 absolutely; tiny results are 0.
#ifdef __CUDA_ARCH__
#define TFINV_ONE_INSTRUCTION(name, instruction, host)    \
  __device__ inline float name(float x) {                 \
    float y;                                              \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x));       \
    return y;                                             \
  }
#else
#define TFINV_ONE_INSTRUCTION(name, instruction, host) \
  __device__ inline float name(float x) { return host; }
#endif
TFINV_ONE_INSTRUCTION(Exp2, "ex2.approx.ftz.f32", exp2f(x))
TFINV_ONE_INSTRUCTION(Log2, "lg2.approx.ftz.f32", log2f(x))
TFINV_ONE_INSTRUCTION(Reciprocal, "rcp.approx.ftz.f32", 1.0f / x)
#undef TFINV_ONE_INSTRUCTION

struct FixedInputs {
  int batch, children, parents, tiles;
  bool weighing;      // do activations weigh the children? Not in the article's variant
  float log_parents;  // to the base 2
  const float *poses, *activations, *weights, *bias;

  __device__ float LogActivation(float activation) const {
    return weighing ? Log2(AtLeast(kActivationFloor, activation)) : 0.0f;
  }
};

template <int kWidth>
struct Tile {
  static constexpr int kGroups = kWarp / kWidth;
  int lane, tile, b, j;
  bool parent, sample, used;  // is there a parent for this lane, a sample, both?

  __device__ Tile(const FixedInputs& in, int number)
      : lane(threadIdx.x % kWarp), tile(min(number, in.tiles - 1)) {
    const int rank = lane % kWidth;
    b = number * kGroups + lane / kWidth;
    parent = rank < in.parents;
    sample = b < in.batch;
    used = parent && sample;
    b = min(b, in.batch - 1);
    j = min(rank, in.parents - 1);
  }
  __device__ int64_t Child(const FixedInputs& in, int i) const { return int64_t{b} * in.children + i; }
  __device__ int64_t Row(const FixedInputs& in) const { return int64_t{b} * in.parents + j; }
  __device__ int Rank() const { return lane % kWidth; }
};

// A warp's piece of [tile][value][lane]. Arrays of 16 are kept as four floats of each lane.
struct Piece {
  const float* base;
  int lane;
  __device__ float operator[](int value) const { return base[value * kWarp + lane]; }
  __device__ float4 Quad(int array, int quad) const {
    return reinterpret_cast<const float4*>(base + (array + quad * 4) * kWarp)[lane];
  }
  __device__ void Load(int array, float (&x)[kH]) const {
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const float4 four = Quad(array, quad);
      x[quad * 4] = four.x, x[quad * 4 + 1] = four.y, x[quad * 4 + 2] = four.z, x[quad * 4 + 3] = four.w;
    }
  }
};
struct PieceOut {
  float* base;
  int lane;
  __device__ float& operator[](int value) const { return base[value * kWarp + lane]; }
  __device__ void Store(int array, const float (&x)[kH]) const {
#pragma unroll
    for (int quad = 0; quad < 4; ++quad)
      reinterpret_cast<float4*>(base + (array + quad * 4) * kWarp)[lane] = {x[quad * 4], x[quad * 4 + 1],
                                                                           x[quad * 4 + 2], x[quad * 4 + 3]};
  }
};

// Reduces each of N values over a group; every lane gets the results. The shuffles of one step overlap.
template <int kWidth, class Op, int N>
__device__ void ReduceEach(float (&values)[N]) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset >>= 1) {
    float others[N];
#pragma unroll
    for (int n = 0; n < N; ++n) others[n] = __shfl_xor_sync(kAllLanes, values[n], offset);
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] = Op::Of(values[n], others[n]);
  }
}
template <int kWidth, class Op>
__device__ float ReduceLanes(float value) {
  float values[1] = {value};
  ReduceEach<kWidth, Op>(values);
  return values[0];
}

struct Coupling {
  float log, value;
};
// Softmax over a group, to the base 2, of each of N logits. The maximum goes first, as in GroupLogSoftmax;
// lanes without a parent repeat one, and do not change it.
template <int kWidth, int N>
__device__ void Softmax(const float (&logits)[N], bool parent, Coupling (&couplings)[N]) {
  float largest[N], powers[N], sums[N];
#pragma unroll
  for (int n = 0; n < N; ++n) largest[n] = logits[n];
  ReduceEach<kWidth, Maximum>(largest);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    couplings[n].log = logits[n] - largest[n];
    powers[n] = Exp2(couplings[n].log);
    sums[n] = parent ? powers[n] : 0.0f;
  }
  ReduceEach<kWidth, Sum>(sums);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    couplings[n].log -= Log2(sums[n]);
    couplings[n].value = powers[n] * Reciprocal(sums[n]);
  }
}
template <int kWidth>
__device__ Coupling Softmax(float logit, bool parent) {
  const float logits[1] = {logit};
  Coupling coupling[1];
  Softmax<kWidth>(logits, parent, coupling);
  return coupling[0];
}
// Of the first iteration.
template <int kWidth>
__device__ Coupling FirstCoupling(const FixedInputs& in, const Tile<kWidth>& at, int i) {
  // A bias of -FLT_MAX, which masks, must not become infinite.
  constexpr float kMost = FLT_MAX / 2.0f;
  if (in.bias) {
    const float bias = AtLeast(-kMost, in.bias[int64_t{i} * in.parents + at.j]);
    return Softmax<kWidth>(kLog2E * -AtLeast(-kMost, -bias), at.parent);
  }
  return {-in.log_parents, Exp2(-in.log_parents)};
}

__device__ inline void LoadMatrix(const float* from, float (&x)[kH]) {
#pragma unroll
  for (int quad = 0; quad < 4; ++quad) {
    const float4 four = reinterpret_cast<const float4*>(from)[quad];
    x[quad * 4] = four.x, x[quad * 4 + 1] = four.y, x[quad * 4 + 2] = four.z, x[quad * 4 + 3] = four.w;
  }
}
__device__ inline void Multiply(const float (&pose)[kH], const float (&w)[kH], float (&votes)[kH]) {
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      votes[r * 4 + c] = fmaf(pose[r * 4], w[c],
                              fmaf(pose[r * 4 + 1], w[4 + c],
                                   fmaf(pose[r * 4 + 2], w[8 + c], pose[r * 4 + 3] * w[12 + c])));
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_EM_CUDA_TILES_CUH_
