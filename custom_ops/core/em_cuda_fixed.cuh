// EM routing of poses of 4 x 4 and at most 32 parents: sums over children, and the small passes. The layout
// is in em_cuda_tiles.cuh.
#ifndef TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_CUH_
#define TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_CUH_

#include "em_cuda_tiles.cuh"

namespace tfinv {
namespace cuda {

// Sums over children: a lane keeps the sums of its sample and parent.

constexpr int kFixedThreads = 128;
constexpr int kAccumulateBlocks = 4, kAdjointBlocks = 3;  // that a multiprocessor has registers for

struct FixedWork {
  int blocks, splits, children_per_split;  // blocks of tiles
  int stage;                               // children whose weights are in shared memory
};

// Weights of `count` children, for all lanes of a group.
template <int kWidth>
__device__ void StageMatrices(const FixedInputs& in, int child, int count, float* shared) {
  const float4* from = reinterpret_cast<const float4*>(in.weights + int64_t{child} * in.parents * kH);
  __syncthreads();  // nobody reads the previous children any more
  for (int n = threadIdx.x; n < count * kWidth * 4; n += kFixedThreads) {
    const int row = n / 4, quad = n % 4, j = min(row % kWidth, in.parents - 1);
    reinterpret_cast<float4*>(shared + row * kMatrixStride)[quad] =
        from[(row / kWidth * in.parents + j) * 4 + quad];
  }
  __syncthreads();
}

// Calls `visit(votes, activation, i)` for the children of a split. The next pose is on its way meanwhile.
template <int kWidth, class Visit>
__device__ void EachChild(const FixedInputs& in, const FixedWork& work, const Tile<kWidth>& at, int split,
                          float* shared, const Visit& visit) {
  const int begin = split * work.children_per_split;
  const int end = min(begin + work.children_per_split, in.children);
  const float* next = in.poses + at.Child(in, begin) * kH;
  const float* next_activation = in.activations + at.Child(in, begin);
  float pose[kH], activation = *next_activation;
  LoadMatrix(next, pose);
  for (int child = begin; child < end; child += work.stage) {
    const int count = min(work.stage, end - child);
    StageMatrices<kWidth>(in, child, count, shared);
    const float* matrix = shared + at.Rank() * kMatrixStride;
#pragma unroll 1
    for (int i = child; i < child + count; ++i, matrix += kWidth * kMatrixStride) {
      float w[kH], votes[kH];
      LoadMatrix(matrix, w);
      Multiply(pose, w, votes);
      const float log_activation = in.LogActivation(activation);
      if (i + 1 < end) {
        next += kH;
        LoadMatrix(next, pose);
        activation = *++next_activation;
      }
      visit(votes, log_activation, i);
    }
  }
}

// partial [split][tile] = mean [16], squared deviations [16], a log weight, the weight relative to it.
template <int kWidth, bool kFirst>
__global__ void __launch_bounds__(kFixedThreads, kAccumulateBlocks)
    FixedAccumulateKernel(FixedInputs in, FixedWork work, const float* states, float* partial) {
  TFINV_SHARED(shared);
  constexpr float kSlack = 16.0f;  // a weight may be so many powers of 2 above the reference
  for (int unit = blockIdx.x; unit < work.blocks * work.splits; unit += gridDim.x) {
    const int split = unit / work.blocks;
    const int number = unit % work.blocks * (kFixedThreads / kWarp) + threadIdx.x / kWarp;
    const Tile<kWidth> at(in, number);
    float scale[kH], shift[kH], constant = 0.0f;  // votes in units of the deviation: scale vote - shift
    if constexpr (!kFirst) {
      const Piece state = {states + int64_t{at.tile} * kStateFloats, at.lane};
      state.Load(kScale, scale);
      state.Load(kMean, shift);
#pragma unroll
      for (int h = 0; h < kH; ++h) shift[h] *= -scale[h];
      constant = state[kConstantAt];
    }
    float mean[kH] = {}, squares[kH] = {}, reference = -FLT_MAX, weight = 0.0f;
    const auto add = [&](const float(&votes)[kH], float log_activation, int i) {
      Coupling coupling;
      if constexpr (kFirst) {
        coupling = FirstCoupling(in, at, i);
      } else {
        float distance[2] = {0.0f, 0.0f};
#pragma unroll
        for (int h = 0; h < kH; ++h) {
          const float deviation = fmaf(votes[h], scale[h], shift[h]);
          distance[h % 2] = fmaf(deviation, deviation, distance[h % 2]);
        }
        coupling = Softmax<kWidth>(constant - (distance[0] + distance[1]), at.parent);
      }
      // West 1979. The reference follows only what is far above it: most children change no earlier sum.
      const float log_weight = coupling.log + log_activation;
      if (log_weight > reference + kSlack) {
        const float shrink = Exp2(reference - log_weight);
        reference = log_weight;
        weight *= shrink;
#pragma unroll
        for (int h = 0; h < kH; ++h) squares[h] *= shrink;
      }
      const float added = Exp2(log_weight - reference), before = weight;
      weight += added;
      const float share = added * Reciprocal(weight), spread = share * before;
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        const float deviation = votes[h] - mean[h];
        mean[h] = fmaf(share, deviation, mean[h]);
        squares[h] = fmaf(spread * deviation, deviation, squares[h]);
      }
    };
    EachChild<kWidth>(in, work, at, split, shared, add);
    if (number >= in.tiles) continue;
    const PieceOut out = {partial + (int64_t{split} * in.tiles + at.tile) * kMomentFloats, at.lane};
    out.Store(0, mean);
    out.Store(kH, squares);
    out[2 * kH] = reference;
    out[2 * kH + 1] = weight;
  }
}

// partial [split][tile] = with z = scale (vote - mean): dlogit z [16], dlogit z^2 [16], dlogit.
template <int kWidth>
__global__ void __launch_bounds__(kFixedThreads, kAdjointBlocks)
    FixedAdjointSumsKernel(FixedInputs in, FixedWork work, const float* before, const float* now,
                           const float* adjoints, float* partial) {
  TFINV_SHARED(shared);
  for (int unit = blockIdx.x; unit < work.blocks * work.splits; unit += gridDim.x) {
    const int split = unit / work.blocks;
    const int number = unit % work.blocks * (kFixedThreads / kWarp) + threadIdx.x / kWarp;
    const Tile<kWidth> at(in, number);
    const Piece earlier = {before + int64_t{at.tile} * kStateFloats, at.lane};
    const Piece state = {now + int64_t{at.tile} * kStateFloats, at.lane};
    const Piece adjoint = {adjoints + int64_t{at.tile} * kAdjointFloats, at.lane};
    float scale[kH], centre[kH], mean[kH], dmean[kH], dvariance[kH];
    earlier.Load(kScale, scale);
    earlier.Load(kMean, centre);
    state.Load(kMean, mean);
    adjoint.Load(kDmean, dmean);
    adjoint.Load(kDvariance, dvariance);
    const float constant = earlier[kConstantAt], logmass = state[kLogMassAt];
    const float dlog_coupling = adjoint[kDlogCouplingAt];
    float first[kH] = {}, second[kH] = {}, sum = 0.0f;
    const auto add = [&](const float(&votes)[kH], float log_activation, int) {
      float z[kH], distance[2] = {0.0f, 0.0f}, gradient[2] = {dlog_coupling, 0.0f};
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        // The difference first: of votes that agree, z is 0, and their gradients are multiplied by scale again.
        z[h] = (votes[h] - centre[h]) * scale[h];
        distance[h % 2] = fmaf(z[h], z[h], distance[h % 2]);
        const float deviation = votes[h] - mean[h];
        gradient[h % 2] = fmaf(deviation, fmaf(deviation, dvariance[h], dmean[h]), gradient[h % 2]);
      }
      const Coupling coupling = Softmax<kWidth>(constant - (distance[0] + distance[1]), at.parent);
      const float rho = Exp2(coupling.log + log_activation - logmass);
      const float dlogr = at.parent ? rho * (gradient[0] + gradient[1]) : 0.0f;
      const float dlogit = fmaf(-coupling.value, ReduceLanes<kWidth, Sum>(dlogr), dlogr);
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        const float part = dlogit * z[h];
        first[h] += part;
        second[h] = fmaf(part, z[h], second[h]);
      }
      sum += dlogit;
    };
    EachChild<kWidth>(in, work, at, split, shared, add);
    if (number >= in.tiles) continue;
    const PieceOut out = {partial + (int64_t{split} * in.tiles + at.tile) * kAdjointFloats, at.lane};
    out.Store(0, first);
    out.Store(kH, second);
    out[2 * kH] = sum;
  }
}

// ---------------------------------------------------------------------------------------------------------
// Small passes: a lane has one parent of one sample, a block one tile.

constexpr int kStepsOfLaunch = 8;

struct FixedActivation {
  const float *beta_u, *beta_a;
  EmVariant variant;
  float inverse_temperatures[kStepsOfLaunch];  // of the iterations from that of the launch on
};

// Stores the state of one lane, where states are wanted, and returns exp(loga).
template <int kWidth>
__device__ float StoreState(const FixedActivation& activation, const Tile<kWidth>& at, int step,
                            const float (&mean)[kH], const float (&variance)[kH], float logmass,
                            float* states) {
  float half = 0.0f, precision[kH], scale[kH];
#pragma unroll
  for (int h = 0; h < kH; ++h) {
    half += 0.5f * logf(variance[h]);
    precision[h] = 0.5f * kLog2E / variance[h];
    scale[h] = sqrtf(precision[h]);
  }
  const float cost = expf(logmass) * (activation.beta_u[at.j] + half);
  const float x = activation.inverse_temperatures[step] * (activation.beta_a[at.j] - cost);
  float loga = fminf(x, 0.0f) - log1pf(expf(-fabsf(x)));
  if (activation.variant == EmVariant::kArticle) {
    const float shifted = x - ReduceLanes<kWidth, Maximum>(x);
    loga = shifted - logf(ReduceLanes<kWidth, Sum>(at.parent ? expf(shifted) : 0.0f));
  }
  if (!states) return expf(loga);
  const PieceOut state = {states + int64_t{at.tile} * kStateFloats, at.lane};
  state.Store(kMean, mean);
  state.Store(kPrecision, precision);
  state.Store(kScale, scale);
  state[kConstantAt] = kLog2E * (loga - half);
  state[kLogMassAt] = kLog2E * logmass;
  state[kLogActivationAt] = loga;
  state[kHalfAt] = half;
  return expf(loga);
}

// Statistics of one iteration from the parts; the states or the outputs, if asked for.
template <int kWidth>
__global__ void __launch_bounds__(kWarp)
    FixedMomentsKernel(FixedInputs in, FixedActivation activation, const float* partial, int parts,
                       float floor, float* statistics, float* states, float* outputs,
                       float* output_activations) {
  TFINV_SHARED(shared);
  for (int tile = blockIdx.x; tile < in.tiles; tile += gridDim.x) {
    const Tile<kWidth> at(in, tile);
    const int64_t stride = in.tiles * int64_t{kMomentFloats};
    const float* first = partial + int64_t{tile} * kMomentFloats;
    float largest = -FLT_MAX;
    for (int part = 0; part < parts; ++part)
      largest = fmaxf(largest, Piece{first + part * stride, at.lane}[2 * kH]);
    float mean[kH] = {}, squares[kH] = {}, before = 0.0f;
#pragma unroll 2
    for (int part = 0; part < parts; ++part) {  // Chan et al. 1979: joins the parts one by one
      const Piece from = {first + part * stride, at.lane};
      float their_mean[kH], their_squares[kH];
      from.Load(0, their_mean);
      from.Load(kH, their_squares);
      const float scale = exp2f(from[2 * kH] - largest), weight = scale * from[2 * kH + 1];
      const float all = before + weight, share = all > 0.0f ? weight / all : 0.0f;
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        const float deviation = their_mean[h] - mean[h];
        mean[h] = fmaf(share, deviation, mean[h]);
        squares[h] += scale * their_squares[h] + before * share * deviation * deviation;
      }
      before = all;
    }
    const float logmass = kLn2 * (largest + log2f(before)), per_weight = 1.0f / before;
#pragma unroll
    for (int h = 0; h < kH; ++h) squares[h] = fmaf(squares[h], per_weight, floor);
    const float parent_activation = StoreState(activation, at, 0, mean, squares, logmass, states);
    // The rows of a tile lie behind each other: by way of shared memory they are written in whole lines.
    const int64_t row = int64_t{tile} * at.kGroups * in.parents;
    const int local = at.lane / kWidth * in.parents + at.j;
    if (at.used) {
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        shared[local * kStatistics + h] = mean[h];
        shared[local * kStatistics + kH + h] = squares[h];
      }
      shared[local * kStatistics + 2 * kH] = logmass;
      if (output_activations) output_activations[row + local] = parent_activation;
    }
    __syncthreads();
    const int rows = min(at.kGroups, in.batch - tile * at.kGroups) * in.parents;
    for (int n = threadIdx.x; n < rows * kStatistics; n += kWarp)
      statistics[row * kStatistics + n] = shared[n];
    for (int n = threadIdx.x; outputs && n < rows * kH; n += kWarp)
      outputs[row * kH + n] = shared[n / kH * kStatistics + n % kH];
    __syncthreads();
  }
}

// States of some iterations from their statistics.
template <int kWidth>
__global__ void __launch_bounds__(kWarp)
    FixedStatesKernel(FixedInputs in, FixedActivation activation, int steps, const float* statistics,
                      float* states) {
  TFINV_SHARED(shared);
  for (int64_t unit = blockIdx.x; unit < int64_t{in.tiles} * steps; unit += gridDim.x) {
    const int step = static_cast<int>(unit / in.tiles), tile = static_cast<int>(unit % in.tiles);
    const Tile<kWidth> at(in, tile);
    const int64_t first = int64_t{tile} * at.kGroups * in.parents;
    const int floats = min(at.kGroups, in.batch - tile * at.kGroups) * in.parents * kStatistics;
    const float* from = statistics + (int64_t{step} * in.batch * in.parents + first) * kStatistics;
#pragma unroll 8
    for (int n = threadIdx.x; n < floats; n += kWarp) shared[n] = from[n];
    __syncthreads();
    const float* own = shared + (at.Row(in) - first) * kStatistics;
    float mean[kH], variance[kH];
#pragma unroll
    for (int h = 0; h < kH; ++h) mean[h] = own[h], variance[h] = own[kH + h];
    StoreState(activation, at, step, mean, variance, own[2 * kH],
               states + int64_t{step} * in.tiles * kStateFloats);
    __syncthreads();
  }
}

// Adjoints of one iteration, from the parts of the later E-step or, without any, from the output's gradients;
// and what the parents' activations hand back to variances, masses and betas.
template <int kWidth>
__global__ void __launch_bounds__(kWarp)
    FixedAdjointKernel(FixedInputs in, FixedActivation activation, const float* partial, int parts,
                       const float* doutputs, const float* doutput_activations, float floor,
                       const float* states, float* adjoints, float* dbeta_u, float* dbeta_a) {
  for (int tile = blockIdx.x; tile < in.tiles; tile += gridDim.x) {
    const Tile<kWidth> at(in, tile);
    const Piece state = {states + int64_t{tile} * kStateFloats, at.lane};
    const int64_t row = at.Row(in);
    const float loga = state[kLogActivationAt];
    float dmean[kH] = {}, dvariance[kH] = {}, precision[kH], dloga = 0.0f;
    state.Load(kPrecision, precision);
    if (doutputs) {
      dloga = expf(loga) * doutput_activations[row];
#pragma unroll
      for (int h = 0; h < kH; ++h) dmean[h] = doutputs[row * kH + h];
    } else {
#pragma unroll 2
      for (int part = 0; part < parts; ++part) {
        const Piece from = {partial + (int64_t{part} * in.tiles + tile) * kAdjointFloats, at.lane};
        float first[kH], second[kH];
        from.Load(0, first);
        from.Load(kH, second);
        dloga += from[2 * kH];
#pragma unroll
        for (int h = 0; h < kH; ++h) dmean[h] += first[h], dvariance[h] += second[h];
      }
      float scale[kH];
      state.Load(kScale, scale);
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        dmean[h] *= 2.0f * kLn2 * scale[h];
        dvariance[h] = kLn2 * precision[h] * (2.0f * kLn2 * dvariance[h] - dloga);
      }
    }
    const bool article = activation.variant == EmVariant::kArticle;
    float dx = -dloga * expm1f(loga);
    if (article) dx = dloga - expf(loga) * ReduceLanes<kWidth, Sum>(at.parent ? dloga : 0.0f);
    const float dlinear = activation.inverse_temperatures[0] * dx;
    const float dcost = -dlinear * exp2f(state[kLogMassAt]);
    float dlog_coupling = dcost * (activation.beta_u[at.j] + state[kHalfAt]);
#pragma unroll
    for (int h = 0; h < kH; ++h) {
      dvariance[h] = fmaf(kLn2 * dcost, precision[h], dvariance[h]);
      dlog_coupling = fmaf(floor - 0.5f * kLog2E / precision[h], dvariance[h], dlog_coupling);
    }
    const PieceOut adjoint = {adjoints + int64_t{tile} * kAdjointFloats, at.lane};
    adjoint.Store(kDmean, dmean);
    adjoint.Store(kDvariance, dvariance);
    adjoint[kDlogCouplingAt] = dlog_coupling;
    if (!at.used) continue;
    dbeta_u[row] = doutputs ? dcost : dbeta_u[row] + dcost;
    dbeta_a[row] = doutputs ? dlinear : dbeta_a[row] + dlinear;
  }
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_CUH_
