// EM routing of poses of 4 x 4 and at most 32 parents: what EM networks are made of, so it has passes of its
// own. em_cuda_steps.cuh and cuda_routing.cuh have those for any other size. The maths is in routing.h.
//
// A tile is what one warp works on: `kGroups` samples of `kWidth` >= J lanes, a lane for each parent; lanes
// without a parent or a sample repeat the last one and write nothing that is read. Everything that belongs to
// a lane lies in the workspace as [tile][value][lane], so that a warp reads and writes whole lines:
//   state    mean, precision, scale [16 each], constant, logmass, loga, half
//   adjoint  dmean, dvariance [16 each], dlogmass - sum over h of (variance - floor) dvariance
// Logarithms of couplings are to the base 2, which is what the hardware has: precision = log2(e) / 2 /
// variance, scale is its root, constant = log2(e) (loga - half) and logmass as well; loga and half, half the
// sum of log variance, are natural.
#ifndef TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_CUH_
#define TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_CUH_

#include "cuda_plan.cuh"

namespace tfinv {
namespace cuda {

// Multiprocessors of the card that the division of work suits best; on every card it is the same.
TFINV_LIMIT(kMultiprocessors, 132);

constexpr int kH = 16;  // components of a vote, of a pose and of a weight matrix
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

constexpr int kMean = 0, kPrecision = kH, kScale = 2 * kH, kStateScalars = 3 * kH;
constexpr int kFixedConstant = kStateScalars, kFixedLogMass = kStateScalars + 1,
              kFixedLogActivation = kStateScalars + 2, kFixedHalf = kStateScalars + 3;
constexpr int kStateFloats = (kStateScalars + 4) * kWarp;
constexpr int kDmean = 0, kDvariance = kH, kFixedDlogCoupling = 2 * kH;
constexpr int kAdjointFloats = (2 * kH + 1) * kWarp;
constexpr int kMomentFloats = (2 * kH + 2) * kWarp;    // mean, squares [16 each], reference, weight
constexpr int kStatistics = 2 * kH + 1;                // of a row of the statistics
constexpr int kFixedThreads = 128, kAccumulateBlocks = 4, kAdjointBlocks = 3;  // the latter: resident
constexpr int kGradientThreads = 384;
constexpr int kMatrixStride = kH + 4;  // the lanes of a quarter warp then meet no bank twice

// One instruction each, good to 2^-22; tiny results are 0.
__device__ inline float Exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
__device__ inline float Log2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return log2f(x);
#endif
}
__device__ inline float Reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

struct FixedInputs {
  int64_t batch, children, tiles;
  int parents;
  float log_parents;  // to the base 2
  const float *poses, *activations, *weights, *bias;

  __device__ float Activation(int64_t at) const { return activations ? activations[at] : 1.0f; }
};

template <int kWidth>
struct Tile {
  static constexpr int kGroups = kWarp / kWidth;
  int lane, rank, j;
  int64_t tile, b;
  bool parent, used;  // is there a parent for this lane, and a sample too?

  __device__ Tile(const FixedInputs& in, int64_t number)
      : lane(threadIdx.x % kWarp), rank(lane % kWidth), j(min(rank, in.parents - 1)),
        tile(min(number, in.tiles - 1)) {
    const int64_t sample = number * kGroups + lane / kWidth;
    parent = rank < in.parents;
    used = parent && sample < in.batch;
    b = min(sample, in.batch - 1);
  }
  __device__ int64_t Row(const FixedInputs& in) const { return b * in.parents + j; }
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

template <int kWidth, class Op>
__device__ float ReduceLanes(float value) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset >>= 1)
    value = Op::Of(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

struct Coupling {
  float log, value;
};
// Softmax over a group, to the base 2. The maximum goes first, as in GroupLogSoftmax; lanes without a parent
// repeat one, and do not change it.
template <int kWidth>
__device__ Coupling Softmax(float logit, bool parent) {
  const float shifted = logit - ReduceLanes<kWidth, Maximum>(logit);
  const float power = Exp2(shifted), sum = ReduceLanes<kWidth, Sum>(parent ? power : 0.0f);
  return {shifted - Log2(sum), power * Reciprocal(sum)};
}
// Of the first iteration.
template <int kWidth>
__device__ Coupling FirstCoupling(const FixedInputs& in, const Tile<kWidth>& at, int64_t i) {
  if (in.bias) return Softmax<kWidth>(kLog2E * in.bias[i * in.parents + at.j], at.parent);
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
__device__ inline float LogActivation(float activation) { return Log2(fmaxf(activation, kActivationFloor)); }

// ---------------------------------------------------------------------------------------------------------
// Sums over children: a lane keeps the sums of its sample and parent.

struct FixedWork {
  int64_t blocks, splits, children_per_split;  // blocks of tiles
  int stage;                                   // children whose weights are in shared memory
};

// Weights of `count` children, for all lanes of a group.
template <int kWidth>
__device__ void StageMatrices(const FixedInputs& in, int64_t child, int count, float* shared) {
  __syncthreads();  // nobody reads the previous children any more
  for (int n = threadIdx.x; n < count * kWidth * 4; n += kFixedThreads) {
    const int row = n / 4, j = min(row % kWidth, in.parents - 1);
    reinterpret_cast<float4*>(shared + row * kMatrixStride)[n % 4] =
        reinterpret_cast<const float4*>(in.weights + ((child + row / kWidth) * in.parents + j) * kH)[n % 4];
  }
  __syncthreads();
}

// Calls `visit(votes, activation, i)` for the children of a split. The next pose is on its way meanwhile.
template <int kWidth, class Visit>
__device__ void EachChild(const FixedInputs& in, const FixedWork& work, const Tile<kWidth>& at, int64_t split,
                          float* shared, const Visit& visit) {
  const int64_t begin = split * work.children_per_split;
  const int64_t end = min(begin + work.children_per_split, in.children);
  const float* next = in.poses + (at.b * in.children + begin) * kH;
  float pose[kH], activation = in.Activation(at.b * in.children + begin);
  LoadMatrix(next, pose);
  for (int64_t child = begin; child < end; child += work.stage) {
    const int count = static_cast<int>(min(int64_t{work.stage}, end - child));
    StageMatrices<kWidth>(in, child, count, shared);
    const float* matrix = shared + at.rank * kMatrixStride;
#pragma unroll 1
    for (int offset = 0; offset < count; ++offset, matrix += kWidth * kMatrixStride) {
      const int64_t i = child + offset;
      float w[kH], votes[kH];
      LoadMatrix(matrix, w);
      Multiply(pose, w, votes);
      const float log_activation = LogActivation(activation);
      if (i + 1 < end) {
        next += kH;
        LoadMatrix(next, pose);
        activation = in.Activation(at.b * in.children + i + 1);
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
  for (int64_t unit = blockIdx.x; unit < work.blocks * work.splits; unit += gridDim.x) {
    const int64_t split = unit / work.blocks;
    const int64_t number = unit % work.blocks * (kFixedThreads / kWarp) + threadIdx.x / kWarp;
    const Tile<kWidth> at(in, number);
    float scale[kH], shift[kH], constant = 0.0f;  // votes in units of the deviation: scale vote - shift
    if constexpr (!kFirst) {
      const Piece state = {states + at.tile * kStateFloats, at.lane};
      state.Load(kScale, scale);
      state.Load(kMean, shift);
#pragma unroll
      for (int h = 0; h < kH; ++h) shift[h] *= -scale[h];
      constant = state[kFixedConstant];
    }
    float mean[kH] = {}, squares[kH] = {}, reference = -FLT_MAX, weight = 0.0f;
    const auto add = [&](const float(&votes)[kH], float log_activation, int64_t i) {
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
    const PieceOut out = {partial + (split * in.tiles + at.tile) * kMomentFloats, at.lane};
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
  for (int64_t unit = blockIdx.x; unit < work.blocks * work.splits; unit += gridDim.x) {
    const int64_t split = unit / work.blocks;
    const int64_t number = unit % work.blocks * (kFixedThreads / kWarp) + threadIdx.x / kWarp;
    const Tile<kWidth> at(in, number);
    const Piece earlier = {before + at.tile * kStateFloats, at.lane};
    const Piece state = {now + at.tile * kStateFloats, at.lane};
    const Piece adjoint = {adjoints + at.tile * kAdjointFloats, at.lane};
    float scale[kH], shift[kH], mean[kH], dmean[kH], dvariance[kH];
    earlier.Load(kScale, scale);
    earlier.Load(kMean, shift);
#pragma unroll
    for (int h = 0; h < kH; ++h) shift[h] *= -scale[h];
    state.Load(kMean, mean);
    adjoint.Load(kDmean, dmean);
    adjoint.Load(kDvariance, dvariance);
    const float constant = earlier[kFixedConstant], logmass = state[kFixedLogMass];
    const float dlog_coupling = adjoint[kFixedDlogCoupling];
    float first[kH] = {}, second[kH] = {}, sum = 0.0f;
    const auto add = [&](const float(&votes)[kH], float log_activation, int64_t) {
      float z[kH], distance[2] = {0.0f, 0.0f}, gradient[2] = {dlog_coupling, 0.0f};
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        z[h] = fmaf(votes[h], scale[h], shift[h]);
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
    const PieceOut out = {partial + (split * in.tiles + at.tile) * kAdjointFloats, at.lane};
    out.Store(0, first);
    out.Store(kH, second);
    out[2 * kH] = sum;
  }
}

// ---------------------------------------------------------------------------------------------------------
// Small passes: a lane has one parent of one sample, a block one tile.

struct FixedActivation {
  const float *beta_u, *beta_a;
  EmVariant variant;
  float inverse_temperature;
};

// The state of one lane, and exp(loga).
template <int kWidth>
__device__ float StoreState(const FixedActivation& activation, const Tile<kWidth>& at,
                            const float (&mean)[kH], const float (&variance)[kH], float logmass,
                            float* states) {
  const PieceOut state = {states + at.tile * kStateFloats, at.lane};
  float half = 0.0f, precision[kH], scale[kH];
#pragma unroll
  for (int h = 0; h < kH; ++h) {
    half += 0.5f * logf(variance[h]);
    precision[h] = 0.5f * kLog2E / variance[h];
    scale[h] = sqrtf(precision[h]);
  }
  const float cost = expf(logmass) * (activation.beta_u[at.j] + half);
  const float x = activation.inverse_temperature * (activation.beta_a[at.j] - cost);
  float loga = fminf(x, 0.0f) - log1pf(expf(-fabsf(x)));
  if (activation.variant == EmVariant::kArticle) {
    const float shifted = x - ReduceLanes<kWidth, Maximum>(x);
    loga = shifted - logf(ReduceLanes<kWidth, Sum>(at.parent ? expf(shifted) : 0.0f));
  }
  state.Store(kMean, mean);
  state.Store(kPrecision, precision);
  state.Store(kScale, scale);
  state[kFixedConstant] = kLog2E * (loga - half);
  state[kFixedLogMass] = kLog2E * logmass;
  state[kFixedLogActivation] = loga;
  state[kFixedHalf] = half;
  return expf(loga);
}

// Statistics and states of one iteration from the parts; the outputs, if asked for.
template <int kWidth>
__global__ void __launch_bounds__(kWarp)
    FixedMomentsKernel(FixedInputs in, FixedActivation activation, const float* partial, int64_t parts,
                       float floor, float* statistics, float* states, float* outputs,
                       float* output_activations) {
  TFINV_SHARED(shared);
  for (int64_t tile = blockIdx.x; tile < in.tiles; tile += gridDim.x) {
    const Tile<kWidth> at(in, tile);
    const int64_t stride = in.tiles * kMomentFloats;
    const float* first = partial + tile * kMomentFloats;
    float largest = -FLT_MAX;
    for (int64_t part = 0; part < parts; ++part)
      largest = fmaxf(largest, Piece{first + part * stride, at.lane}[2 * kH]);
    float mean[kH] = {}, squares[kH] = {}, before = 0.0f;
#pragma unroll 1
    for (int64_t part = 0; part < parts; ++part) {  // Chan et al. 1979: joins the parts one by one
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
    const float parent_activation = StoreState(activation, at, mean, squares, logmass, states);
    // The rows of a tile lie behind each other: by way of shared memory they are written in whole lines.
    const int64_t row = tile * (kWarp / kWidth) * in.parents;
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
    const int rows = static_cast<int>(min(int64_t{kWarp / kWidth} * in.parents, in.batch * in.parents - row));
    for (int n = threadIdx.x; n < rows * kStatistics; n += kWarp)
      statistics[row * kStatistics + n] = shared[n];
    for (int n = threadIdx.x; outputs && n < rows * kH; n += kWarp)
      outputs[row * kH + n] = shared[n / kH * kStatistics + n % kH];
    __syncthreads();
  }
}

// States of one iteration from its statistics.
template <int kWidth>
__global__ void __launch_bounds__(kWarp)
    FixedStatesKernel(FixedInputs in, FixedActivation activation, const float* statistics, float* states) {
  TFINV_SHARED(shared);
  for (int64_t tile = blockIdx.x; tile < in.tiles; tile += gridDim.x) {
    const Tile<kWidth> at(in, tile);
    const int64_t row = tile * (kWarp / kWidth) * in.parents;
    const int rows = static_cast<int>(min(int64_t{kWarp / kWidth} * in.parents, in.batch * in.parents - row));
#pragma unroll 8
    for (int n = threadIdx.x; n < rows * kStatistics; n += kWarp)
      shared[n] = statistics[row * kStatistics + n];
    __syncthreads();
    const float* own = shared + (at.Row(in) - row) * kStatistics;
    float mean[kH], variance[kH];
#pragma unroll
    for (int h = 0; h < kH; ++h) mean[h] = own[h], variance[h] = own[kH + h];
    StoreState(activation, at, mean, variance, own[2 * kH], states);
    __syncthreads();
  }
}

// Adjoints of one iteration, from the parts of the later E-step or, without any, from the output's gradients;
// and what the parents' activations hand back to variances, masses and betas.
template <int kWidth>
__global__ void __launch_bounds__(kWarp)
    FixedAdjointKernel(FixedInputs in, FixedActivation activation, const float* partial, int64_t parts,
                       const float* doutputs, const float* doutput_activations, float floor,
                       const float* states, float* adjoints, float* dbeta_u, float* dbeta_a) {
  for (int64_t tile = blockIdx.x; tile < in.tiles; tile += gridDim.x) {
    const Tile<kWidth> at(in, tile);
    const Piece state = {states + tile * kStateFloats, at.lane};
    const int64_t row = at.Row(in);
    const float loga = state[kFixedLogActivation];
    float dmean[kH] = {}, dvariance[kH] = {}, precision[kH], dloga = 0.0f;
    state.Load(kPrecision, precision);
    if (doutputs) {
      dloga = expf(loga) * doutput_activations[row];
#pragma unroll
      for (int h = 0; h < kH; ++h) dmean[h] = doutputs[row * kH + h];
    } else {
#pragma unroll 2
      for (int64_t part = 0; part < parts; ++part) {
        const Piece from = {partial + (part * in.tiles + tile) * kAdjointFloats, at.lane};
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
    const float dlinear = activation.inverse_temperature * dx;
    const float dcost = -dlinear * exp2f(state[kFixedLogMass]);
    float dlog_coupling = dcost * (activation.beta_u[at.j] + state[kFixedHalf]);
#pragma unroll
    for (int h = 0; h < kH; ++h) {
      dvariance[h] = fmaf(kLn2 * dcost, precision[h], dvariance[h]);
      dlog_coupling = fmaf(floor - 0.5f * kLog2E / precision[h], dvariance[h], dlog_coupling);
    }
    const PieceOut adjoint = {adjoints + tile * kAdjointFloats, at.lane};
    adjoint.Store(kDmean, dmean);
    adjoint.Store(kDvariance, dvariance);
    adjoint[kFixedDlogCoupling] = dlog_coupling;
    if (!at.used) continue;
    dbeta_u[row] = doutputs ? dcost : dbeta_u[row] + dcost;
    dbeta_a[row] = doutputs ? dlinear : dbeta_a[row] + dlinear;
  }
}

// ---------------------------------------------------------------------------------------------------------
// Gradients of poses, weights, bias and activations. A warp has one child and goes through the tiles of a
// split; weights and their gradient stay in registers. The warps of a block read the same states at about the
// same time, which then come from the first-level cache.

struct FixedGradientWork {
  int64_t chunks, splits, tiles_per_split;  // chunks of as many children as a block has warps
};

// Sums 16 values over the lanes of a group; a lane is left with those from 16 rank / kWidth on.
template <int kWidth>
__device__ void ReduceScatter(int rank, float (&x)[kH]) {
  int left = kH;
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset >>= 1) {
    if (left == 1) {
      x[0] += __shfl_xor_sync(kAllLanes, x[0], offset);
      continue;
    }
    left /= 2;
    const bool upper = rank & offset;
#pragma unroll
    for (int n = 0; n < kH / 2; ++n) {
      if (n >= left) continue;
      const float kept = upper ? x[left + n] : x[n], given = upper ? x[n] : x[left + n];
      x[n] = kept + __shfl_xor_sync(kAllLanes, given, offset);
    }
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kGradientThreads, 1)
    FixedGradientKernel(FixedInputs in, FixedGradientWork work, int iterations, const float* states,
                        const float* adjoints, Gradients out) {
  constexpr int kLeft = kWidth >= kH ? 1 : kH / kWidth;
  for (int64_t unit = blockIdx.x; unit < work.chunks * work.splits; unit += gridDim.x) {
    const int64_t split = unit / work.chunks;
    const int64_t i = unit % work.chunks * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (i >= in.children) continue;
    const int64_t tile_end = min((split + 1) * work.tiles_per_split, in.tiles);
    float w[kH], dw[kH] = {}, dbias = 0.0f;
    const int j = min(static_cast<int>(threadIdx.x) % kWidth, in.parents - 1);
    LoadMatrix(in.weights + (i * in.parents + j) * kH, w);
#pragma unroll 1
    for (int64_t tile = split * work.tiles_per_split; tile < tile_end; ++tile) {
      const Tile<kWidth> at(in, tile);
      const int64_t child = at.b * in.children + i;
      const float* state = states + tile * kStateFloats;
      const float* adjoint = adjoints + tile * kAdjointFloats;
      const float activation = in.Activation(child), log_activation = LogActivation(activation);
      float votes[kH], deviations[kH], dvotes[kH], dlog_activation = 0.0f;
      {
        float pose[kH];
        LoadMatrix(in.poses + child * kH, pose);
        Multiply(pose, w, votes);
      }
#pragma unroll 1
      for (int step = 0; step < iterations; ++step) {
        const Piece now = {state + step * in.tiles * kStateFloats, at.lane};
        const Piece given = {adjoint + step * in.tiles * kAdjointFloats, at.lane};
        Coupling coupling;
        float z[kH];  // precision (vote - mean), of the earlier iteration
        if (step == 0) {
          coupling = FirstCoupling(in, at, i);
#pragma unroll
          for (int h = 0; h < kH; ++h) z[h] = 0.0f, dvotes[h] = 0.0f;
        } else {
          const Piece earlier = {now.base - in.tiles * kStateFloats, at.lane};
          float distance[2] = {0.0f, 0.0f};
          earlier.Load(kPrecision, z);
#pragma unroll
          for (int h = 0; h < kH; ++h) {
            z[h] *= deviations[h];
            distance[h % 2] = fmaf(z[h], deviations[h], distance[h % 2]);
          }
          coupling = Softmax<kWidth>(earlier[kFixedConstant] - (distance[0] + distance[1]), at.parent);
        }
        float slope[kH];  // of the log coupling's gradient in the vote, by rho
        float gradient[2] = {given[kFixedDlogCoupling], 0.0f};
#pragma unroll
        for (int quad = 0; quad < 4; ++quad) {
          const float4 m = now.Quad(kMean, quad), d = given.Quad(kDmean, quad);
          const float4 v = given.Quad(kDvariance, quad);
          const float ms[4] = {m.x, m.y, m.z, m.w}, ds[4] = {d.x, d.y, d.z, d.w};
          const float vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const int h = quad * 4 + n;
            deviations[h] = votes[h] - ms[n];
            const float inner = fmaf(deviations[h], vs[n], ds[n]);
            gradient[n % 2] = fmaf(deviations[h], inner, gradient[n % 2]);
            slope[h] = fmaf(deviations[h], vs[n], inner);
          }
        }
        const float rho = at.used ? Exp2(coupling.log + log_activation - now[kFixedLogMass]) : 0.0f;
        const float dlogr = rho * (gradient[0] + gradient[1]), total = ReduceLanes<kWidth, Sum>(dlogr);
        const float dlogit = at.used ? fmaf(-coupling.value, total, dlogr) : 0.0f;
        const float dz = -2.0f * kLn2 * dlogit;
        dlog_activation += total;
        if (step == 0) dbias += dlogit;
#pragma unroll
        for (int h = 0; h < kH; ++h) dvotes[h] = fmaf(rho, slope[h], fmaf(dz, z[h], dvotes[h]));
      }
      float dpose[kH];
      {
        float pose[kH];
        LoadMatrix(in.poses + child * kH, pose);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              sum = fmaf(dvotes[r * 4 + c], w[q * 4 + c], sum);
              dw[q * 4 + c] = fmaf(pose[r * 4 + q], dvotes[r * 4 + c], dw[q * 4 + c]);
            }
            dpose[r * 4 + q] = sum;
          }
      }
      ReduceScatter<kWidth>(at.rank, dpose);
      if (tile * at.kGroups + at.lane / kWidth < in.batch) {
        if (kWidth <= kH || at.rank % (kWidth / kH > 0 ? kWidth / kH : 1) == 0) {
#pragma unroll
          for (int n = 0; n < kLeft; ++n) out.dposes[child * kH + at.rank * kH / kWidth + n] = dpose[n];
        }
        if (out.dactivations && at.rank == 0)
          out.dactivations[child] = activation > kActivationFloor ? dlog_activation / activation : 0.0f;
      }
    }
    // Joins the groups of the warp.
#pragma unroll
    for (int offset = kWidth; offset < kWarp; offset <<= 1) {
#pragma unroll
      for (int n = 0; n < kH; ++n) dw[n] += __shfl_xor_sync(kAllLanes, dw[n], offset);
      dbias += __shfl_xor_sync(kAllLanes, dbias, offset);
    }
    const int lane = threadIdx.x % kWarp;
    if (lane >= in.parents) continue;
    const int64_t row = (split * in.children + i) * in.parents + lane;
#pragma unroll
    for (int n = 0; n < kH; ++n) out.dweights[row * kH + n] = dw[n];
    if (out.dbias) out.dbias[row] = dbias;
  }
}

// ---------------------------------------------------------------------------------------------------------

// How often to divide `length` for blocks of which `resident` run at once: the fewest rounds times what each
// takes, with `setup` more for a block.
inline int64_t BestSplits(int64_t blocks, int64_t length, int64_t most, int64_t resident, int64_t setup) {
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1; splits <= Least(most, length); ++splits) {
    const int64_t cost = CeilDiv(blocks * splits, resident) * (CeilDiv(length, splits) + setup);
    if (cost < least) least = cost, best = splits;
  }
  return best;
}

struct FixedPlan {
  FixedWork work;
  int64_t shared_bytes, partial_floats;
};

inline FixedPlan PlanFixed(const FixedInputs& in, int width, int64_t floats, int64_t resident) {
  constexpr int64_t kMostSplits = 16, kSetup = 3, kStageBytes = 16 * 1024;
  FixedPlan plan;
  FixedWork& work = plan.work;
  work.blocks = CeilDiv(in.tiles, kFixedThreads / kWarp);
  const int64_t most = Least(kMostSplits, Most(1, kPartialBytes / (in.tiles * floats * kFloat)));
  const int64_t splits =
      BestSplits(work.blocks, in.children, most, Most(1, resident * kMultiprocessors), kSetup);
  work.children_per_split = CeilDiv(in.children, splits);
  work.splits = CeilDiv(in.children, work.children_per_split);
  const int64_t child_bytes = width * kMatrixStride * kFloat;
  work.stage = static_cast<int>(Least(work.children_per_split, kStageBytes / child_bytes));
  plan.shared_bytes = work.stage * child_bytes;
  plan.partial_floats = work.splits * in.tiles * floats;
  return plan;
}

struct FixedGradientPlan {
  FixedGradientWork work;
  int threads;
};

inline FixedGradientPlan PlanFixedGradient(const FixedInputs& in) {
  constexpr int64_t kMostSplits = 64, kSetup = 2;
  FixedGradientPlan plan;
  FixedGradientWork& work = plan.work;
  work.chunks = CeilDiv(in.children, kGradientThreads / kWarp);
  plan.threads = static_cast<int>(CeilDiv(in.children, work.chunks)) * kWarp;
  work.chunks = CeilDiv(in.children, plan.threads / kWarp);
  const int64_t weight_bytes = in.children * in.parents * kH * kFloat;
  const int64_t most = Least(kMostSplits, Most(1, kPartialBytes / weight_bytes));
  const int64_t splits = BestSplits(work.chunks, in.tiles, most, kMultiprocessors, kSetup);
  work.tiles_per_split = CeilDiv(in.tiles, splits);
  work.splits = CeilDiv(in.tiles, work.tiles_per_split);
  return plan;
}

// Lanes of a sample.
inline int FixedWidth(int64_t parents) { return parents <= 8 ? 8 : parents <= 16 ? 16 : 32; }

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_EM_CUDA_FIXED_CUH_
