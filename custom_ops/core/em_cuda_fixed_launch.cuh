// EM routing of poses of 4 x 4 and at most 32 parents: how the work is divided, and the order of the passes.
#ifndef TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_LAUNCH_CUH_
#define TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_LAUNCH_CUH_

#include <cmath>

#include "em_cuda_fixed.cuh"
#include "em_cuda_gradient.cuh"

namespace tfinv {
namespace cuda {

struct EmArrays {
  const float *poses, *activations, *weights, *beta_u, *beta_a, *bias;
};

struct EmOutputGradients {
  const float *statistics, *doutputs, *doutput_activations;
  float *dbeta_u, *dbeta_a;
};

// dbeta[j] = sum over b of given[b, j], for both betas; a block has one of them, of one parent.
static __global__ void BatchSumKernel(const float* given_u, const float* given_a, int64_t batch,
                                      int64_t parents, float* dbeta_u, float* dbeta_a) {
  TFINV_SHARED(shared);
  for (int64_t unit = blockIdx.x; unit < 2 * parents; unit += gridDim.x) {
    const bool of_u = unit < parents;
    const int64_t j = unit % parents;
    const float* values = (of_u ? given_u : given_a) + j;
    float* out = (of_u ? dbeta_u : dbeta_a) + j;
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) sum += values[b * parents];
    sum = ReduceWarp<Sum>(sum);
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kMaxThreads / kWarp; ++warp) sum += shared[warp];
      *out = sum;
    }
    __syncthreads();
  }
}

inline void LaunchBatchSum(Stream& stream, const float* dbeta_u, const float* dbeta_a, int64_t batch,
                           int64_t parents, const EmOutputGradients& given) {
  stream.Launch(&BatchSumKernel, 2 * parents, kMaxThreads, kMaxThreads / kWarp * kFloat, dbeta_u, dbeta_a,
                batch, parents, given.dbeta_u, given.dbeta_a);
}

// ---------------------------------------------------------------------------------------------------------

// Into how many parts to divide `length`, for blocks of which `resident` run at once: the fewest rounds times
// what each takes, with `setup` more for a block, and `join` for each part to put together.
inline int64_t BestSplits(int64_t blocks, int64_t length, int64_t most, int64_t resident, int64_t setup,
                          int64_t join) {
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1; splits <= Least(most, length); ++splits) {
    const int64_t cost =
        CeilDiv(blocks * splits, resident) * (CeilDiv(length, splits) + setup) + splits * join;
    if (cost < least) least = cost, best = splits;
  }
  return best;
}

struct FixedPlan {
  FixedWork work;
  int64_t shared_bytes, partial_floats;
  int64_t Blocks() const { return int64_t{work.blocks} * work.splits; }
};

inline FixedPlan PlanFixed(const FixedInputs& in, int width, int64_t floats, int64_t resident) {
  constexpr int64_t kMostSplits = 64, kSetup = 3, kJoin = 1, kStageBytes = 16 * 1024;
  const int64_t blocks = CeilDiv(in.tiles, kFixedThreads / kWarp), children = in.children;
  const int64_t most = Least(kMostSplits, Most(1, kPartialBytes / (in.tiles * floats * kFloat)));
  const int64_t wanted =
      BestSplits(blocks, children, most, Most(1, resident * kMultiprocessors), kSetup, kJoin);
  const int64_t per_split = CeilDiv(children, wanted), splits = CeilDiv(children, per_split);
  const int64_t child_bytes = width * kMatrixStride * kFloat;
  const int64_t stage = Least(per_split, kStageBytes / child_bytes);
  FixedPlan plan;
  plan.work = {static_cast<int>(blocks), static_cast<int>(splits), static_cast<int>(per_split),
               static_cast<int>(stage)};
  plan.shared_bytes = stage * child_bytes;
  plan.partial_floats = splits * in.tiles * floats;
  return plan;
}

struct FixedGradientPlan {
  FixedGradientWork work;
  int threads;
  int64_t Blocks() const { return int64_t{work.chunks} * work.splits; }
};

inline FixedGradientPlan PlanFixedGradient(const FixedInputs& in) {
  constexpr int64_t kMostSplits = 256, kSetup = 2, kJoin = 0;
  const int64_t rows = CeilDiv(in.children, kGradientChildren);  // of warps
  const int64_t warps = CeilDiv(rows, CeilDiv(rows, kGradientThreads / kWarp));
  const int64_t chunks = CeilDiv(rows, warps);
  const int64_t weight_bytes = int64_t{in.children} * in.parents * kH * kFloat;
  const int64_t most = Least(kMostSplits, Most(1, kPartialBytes / weight_bytes));
  const int64_t per_split =
      CeilDiv(in.tiles, BestSplits(chunks, in.tiles, most, kMultiprocessors, kSetup, kJoin));
  FixedGradientPlan plan;
  plan.work = {static_cast<int>(chunks), static_cast<int>(CeilDiv(in.tiles, per_split)),
               static_cast<int>(per_split)};
  plan.threads = static_cast<int>(warps) * kWarp;
  return plan;
}

// Lanes of a sample.
inline int FixedWidth(int64_t parents) { return parents <= 8 ? 8 : parents <= 16 ? 16 : 32; }

// ---------------------------------------------------------------------------------------------------------

// Tiles and children are counted in 32 bits.
inline bool HasOwnPasses(const EmDims& dims) {
  return dims.pose_size == 4 && dims.parents <= kWarp && dims.batch < 1 << 24 && dims.children < 1 << 24;
}

inline FixedInputs FixedOf(const EmDims& dims, const EmArrays& arrays, int width) {
  return {static_cast<int>(dims.batch),
          static_cast<int>(dims.children),
          static_cast<int>(dims.parents),
          static_cast<int>(CeilDiv(dims.batch, kWarp / width)),
          dims.variant == EmVariant::kHinton2018,
          std::log2(static_cast<float>(dims.parents)),
          arrays.poses,
          arrays.activations,
          arrays.weights,
          arrays.bias};
}
inline FixedActivation FixedActivationOf(const EmDims& dims, const EmArrays& arrays, int step) {
  FixedActivation activation = {arrays.beta_u, arrays.beta_a, dims.variant, {}};
  for (int n = 0; n < kStepsOfLaunch && step + n < dims.iterations; ++n)
    activation.inverse_temperatures[n] = dims.inverse_temperatures[step + n];
  return activation;
}

template <int kWidth>
size_t ForwardFixed(const EmDims& dims, const EmArrays& arrays, float* outputs, float* output_activations,
                    float* statistics, void* memory, Stream* stream) {
  const FixedInputs in = FixedOf(dims, arrays, kWidth);
  const FixedPlan plan = PlanFixed(in, kWidth, kMomentFloats, kAccumulateBlocks);
  const int64_t rows = dims.batch * dims.parents;
  Workspace workspace(memory);
  float* partial = workspace.Take(plan.partial_floats);
  float* states = workspace.Take(int64_t{in.tiles} * kStateFloats);
  if (!stream) return workspace.used;

  for (int step = 0; step < dims.iterations; ++step) {
    const auto accumulate =
        step == 0 ? &FixedAccumulateKernel<kWidth, true> : &FixedAccumulateKernel<kWidth, false>;
    stream->Launch(accumulate, plan.Blocks(), kFixedThreads, plan.shared_bytes, in,
                   plan.work, states, partial);
    const bool last = step == dims.iterations - 1;
    stream->Launch(&FixedMomentsKernel<kWidth>, in.tiles, kWarp, kWarp * kStatistics * kFloat, in,
                   FixedActivationOf(dims, arrays, step), partial, plan.work.splits, dims.variance_floor,
                   statistics + step * rows * kStatistics, last ? nullptr : states,
                   last ? outputs : nullptr, last ? output_activations : nullptr);
  }
  return workspace.used;
}

template <int kWidth>
size_t BackwardFixed(const EmDims& dims, const EmArrays& arrays, const EmOutputGradients& given,
                     const Gradients& out, void* memory, Stream* stream) {
  const FixedInputs in = FixedOf(dims, arrays, kWidth);
  const FixedPlan plan = PlanFixed(in, kWidth, kAdjointFloats, kAdjointBlocks);
  const FixedGradientPlan gradient = PlanFixedGradient(in);
  const int R = dims.iterations;
  const int64_t rows = dims.batch * dims.parents, biases = dims.children * dims.parents;
  const int64_t weights = biases * kH, splits = gradient.work.splits;
  const int64_t state_step = int64_t{in.tiles} * kStateFloats;
  const int64_t adjoint_step = int64_t{in.tiles} * kAdjointFloats;
  Workspace workspace(memory);
  float* partial = workspace.Take(plan.partial_floats);
  float* states = workspace.Take(R * state_step);
  float* adjoints = workspace.Take(R * adjoint_step);
  float* dbeta_u = workspace.Take(rows);
  float* dbeta_a = workspace.Take(rows);
  const GradientPieces pieces = TakeGradientPieces(workspace, splits, weights, biases, 0);
  if (!stream) return workspace.used;

  const float* none = nullptr;
  for (int step = 0; step < R; step += kStepsOfLaunch)
    stream->Launch(&FixedStatesKernel<kWidth>, int64_t{in.tiles} * Least(kStepsOfLaunch, R - step), kWarp,
                   kWarp * kStatistics * kFloat, in, FixedActivationOf(dims, arrays, step),
                   static_cast<int>(Least(kStepsOfLaunch, R - step)),
                   given.statistics + step * rows * kStatistics, states + step * state_step);
  for (int step = R - 1; step >= 0; --step) {
    float *state = states + step * state_step, *adjoint = adjoints + step * adjoint_step;
    stream->Launch(&FixedAdjointKernel<kWidth>, in.tiles, kWarp, 0, in, FixedActivationOf(dims, arrays, step),
                   partial, plan.work.splits, step == R - 1 ? given.doutputs : none,
                   given.doutput_activations, dims.variance_floor, state, adjoint, dbeta_u, dbeta_a);
    if (step > 0)
      stream->Launch(&FixedAdjointSumsKernel<kWidth>, plan.Blocks(), kFixedThreads,
                     plan.shared_bytes, in, plan.work, state - state_step, state, adjoint, partial);
  }
  LaunchBatchSum(*stream, dbeta_u, dbeta_a, in.batch, in.parents, given);
  const Gradients target = TargetOfSplits(splits, pieces, out);
  const auto gradients = R > 2 ? &FixedGradientKernel<kWidth, true> : &FixedGradientKernel<kWidth, false>;
  stream->Launch(gradients, gradient.Blocks(), gradient.threads, 0, in,
                 gradient.work, R, states, adjoints, target);
  LaunchSumOfSplits(*stream, splits, weights, biases, pieces, out);
  return workspace.used;
}

inline size_t ForwardFixed(const EmDims& dims, const EmArrays& arrays, float* outputs,
                           float* output_activations, float* statistics, void* memory, Stream* stream) {
  switch (FixedWidth(dims.parents)) {
    case 8:
      return ForwardFixed<8>(dims, arrays, outputs, output_activations, statistics, memory, stream);
    case 16:
      return ForwardFixed<16>(dims, arrays, outputs, output_activations, statistics, memory, stream);
    default:
      return ForwardFixed<32>(dims, arrays, outputs, output_activations, statistics, memory, stream);
  }
}
inline size_t BackwardFixed(const EmDims& dims, const EmArrays& arrays, const EmOutputGradients& given,
                            const Gradients& out, void* memory, Stream* stream) {
  switch (FixedWidth(dims.parents)) {
    case 8:
      return BackwardFixed<8>(dims, arrays, given, out, memory, stream);
    case 16:
      return BackwardFixed<16>(dims, arrays, given, out, memory, stream);
    default:
      return BackwardFixed<32>(dims, arrays, given, out, memory, stream);
  }
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_LAUNCH_CUH_
