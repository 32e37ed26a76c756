// EM routing of poses of 4 x 4 and at most 32 parents: gradients of poses, weights, bias and activations,
// given everything that belongs to (b, j). The layout is in em_cuda_tiles.cuh.
//
// A warp has a few children and goes through the tiles of a split; the weights and their gradient stay in
// registers. The warps of a block read the same states at about the same time, so that most of what they read
// comes from the first-level cache. Warps never wait for each other.
#ifndef TFINV_CUSTOM_OPS_CORE_EM_CUDA_GRADIENT_CUH_
#define TFINV_CUSTOM_OPS_CORE_EM_CUDA_GRADIENT_CUH_

#include "em_cuda_tiles.cuh"

namespace tfinv {
namespace cuda {

// Children of a warp share what it reads of the states; the registers are enough for these numbers.
constexpr int kGradientChildren = 2, kGradientThreads = 256;

struct FixedGradientWork {
  int chunks, splits, tiles_per_split;  // chunks of the children of a block
};

// Asks for the lines of the first two arrays of a state, and of those of an adjoint, of all iterations: all
// warps of the block together.
__device__ inline void FetchTile(const float* state, const float* adjoint, int64_t state_step,
                                 int64_t adjoint_step, int iterations) {
  static_assert(kMean + kPrecision + kDmean + kDvariance == 2 * kH, "the first two arrays are read");
  for (int n = threadIdx.x / kWarp; n < 2 * iterations; n += blockDim.x / kWarp) {
    const float* arrays = n % 2 ? adjoint + n / 2 * adjoint_step : state + n / 2 * state_step;
    const float* line = arrays + threadIdx.x % kWarp * kWarp;  // 32 lines of 32 floats
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L1 [%0];" ::"l"(line));
#else
    (void)line;
#endif
  }
}

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

// One vote, and what the iterations add to its gradients.
struct VoteGradient {
  float votes[kH], dvotes[kH], deviations[kH];  // of the vote from the mean of the latest iteration
  float log_activation, dlog_activation, dbias;
};

// Adds one iteration to the votes for a lane's parent of kGradientChildren children from `i` on. The last one
// leaves no deviations behind.
template <int kWidth, bool kFirst, bool kLast>
__device__ void AddIteration(const FixedInputs& in, const Tile<kWidth>& at, int i, const Piece& earlier,
                             const Piece& now, const Piece& adjoint,
                             VoteGradient (&all)[kGradientChildren]) {
  Coupling couplings[kGradientChildren];
  float z[kGradientChildren][kH];  // precision (vote - mean), of the earlier iteration
  if constexpr (kFirst) {
#pragma unroll
    for (int c = 0; c < kGradientChildren; ++c)
      couplings[c] = FirstCoupling(in, at, min(i + c, in.children - 1));
  } else {
    float distances[kGradientChildren][2] = {};
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const float4 p = earlier.Quad(kPrecision, quad);
      const float ps[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
      for (int c = 0; c < kGradientChildren; ++c)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float deviation = all[c].deviations[quad * 4 + n];
          z[c][quad * 4 + n] = ps[n] * deviation;
          distances[c][n % 2] = fmaf(z[c][quad * 4 + n], deviation, distances[c][n % 2]);
        }
    }
    float logits[kGradientChildren];
#pragma unroll
    for (int c = 0; c < kGradientChildren; ++c)
      logits[c] = earlier[kConstantAt] - (distances[c][0] + distances[c][1]);
    Softmax<kWidth>(logits, at.parent, couplings);
  }
  // The gradient of the log coupling is rho `gradient`, and its own in the vote rho `slope`.
  float slopes[kGradientChildren][kH], gradients[kGradientChildren][2] = {};
#pragma unroll
  for (int quad = 0; quad < 4; ++quad) {
    const float4 m = now.Quad(kMean, quad), d = adjoint.Quad(kDmean, quad);
    const float4 v = adjoint.Quad(kDvariance, quad);
    const float ms[4] = {m.x, m.y, m.z, m.w}, ds[4] = {d.x, d.y, d.z, d.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int c = 0; c < kGradientChildren; ++c)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int h = quad * 4 + n;
        const float deviation = all[c].votes[h] - ms[n], inner = fmaf(deviation, vs[n], ds[n]);
        if constexpr (!kLast) all[c].deviations[h] = deviation;
        gradients[c][n % 2] = fmaf(deviation, inner, gradients[c][n % 2]);
        slopes[c][h] = fmaf(deviation, vs[n], inner);
      }
  }
  float rhos[kGradientChildren], dlogrs[kGradientChildren], totals[kGradientChildren];
#pragma unroll
  for (int c = 0; c < kGradientChildren; ++c) {
    const float log_rho = couplings[c].log + all[c].log_activation - now[kLogMassAt];
    rhos[c] = at.used ? Exp2(log_rho) : 0.0f;
    dlogrs[c] = rhos[c] * (gradients[c][0] + gradients[c][1] + adjoint[kDlogCouplingAt]);
    totals[c] = dlogrs[c];
  }
  ReduceEach<kWidth, Sum>(totals);
#pragma unroll
  for (int c = 0; c < kGradientChildren; ++c) {
    VoteGradient& vote = all[c];
    const float dlogit = at.used ? fmaf(-couplings[c].value, totals[c], dlogrs[c]) : 0.0f;
    if constexpr (kFirst) {
      vote.dlog_activation = totals[c];
      vote.dbias += dlogit;
#pragma unroll
      for (int h = 0; h < kH; ++h) vote.dvotes[h] = rhos[c] * slopes[c][h];
    } else {
      vote.dlog_activation += totals[c];
      const float dz = -2.0f * kLn2 * dlogit;
#pragma unroll
      for (int h = 0; h < kH; ++h)
        vote.dvotes[h] = fmaf(rhos[c], slopes[c][h], fmaf(dz, z[c][h], vote.dvotes[h]));
    }
  }
}

// kMore: are there more than two iterations? Without, nothing has to be spilled.
template <int kWidth, bool kMore>
__global__ void __launch_bounds__(kGradientThreads, 1)
    FixedGradientKernel(FixedInputs in, FixedGradientWork work, int iterations, const float* states,
                        const float* adjoints, Gradients out) {
  constexpr int C = kGradientChildren, kLeft = kWidth >= kH ? 1 : kH / kWidth;
  constexpr int kTwins = kWidth > kH ? kWidth / kH : 1;  // lanes that are left with the same sum of dposes
  const int lane = threadIdx.x % kWarp, rank = lane % kWidth;
  const int64_t state_step = in.tiles * int64_t{kStateFloats};
  const int64_t adjoint_step = in.tiles * int64_t{kAdjointFloats};
  for (int unit = blockIdx.x; unit < work.chunks * work.splits; unit += gridDim.x) {
    const int split = unit / work.chunks;
    const int i = (unit % work.chunks * (blockDim.x / kWarp) + threadIdx.x / kWarp) * C;
    if (i >= in.children) continue;
    const int tile_begin = split * work.tiles_per_split;
    const int tile_end = min(tile_begin + work.tiles_per_split, in.tiles);
    float w[C][kH], dw[C][kH] = {}, poses[C][kH];
    VoteGradient votes[C];
    const Tile<kWidth> first(in, tile_begin);
#pragma unroll
    for (int c = 0; c < C; ++c) {  // a child that is missing repeats the last one
      const int child = min(i + c, in.children - 1);
      LoadMatrix(in.weights + (int64_t{child} * in.parents + first.j) * kH, w[c]);
      LoadMatrix(in.poses + first.Child(in, child) * kH, poses[c]);
      votes[c].dbias = 0.0f;
    }
    Piece state = {states + int64_t{tile_begin} * kStateFloats, lane};
    Piece adjoint = {adjoints + int64_t{tile_begin} * kAdjointFloats, lane};
#pragma unroll 1
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      const Tile<kWidth> at(in, tile), following(in, min(tile + 1, tile_end - 1));
      if (tile + 1 < tile_end)
        FetchTile(state.base + kStateFloats, adjoint.base + kAdjointFloats, state_step, adjoint_step,
                  iterations);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int64_t child = at.Child(in, min(i + c, in.children - 1));
        votes[c].log_activation = in.LogActivation(in.activations[child]);
        Multiply(poses[c], w[c], votes[c].votes);
      }
      AddIteration<kWidth, true, false>(in, at, i, state, state, adjoint, votes);
      Piece of_state = state, of_adjoint = adjoint;
      if constexpr (kMore) {
#pragma unroll 1
        for (int step = 1; step < iterations - 1; ++step) {
          const Piece earlier = of_state;
          of_state.base += state_step, of_adjoint.base += adjoint_step;
          AddIteration<kWidth, false, false>(in, at, i, earlier, of_state, of_adjoint, votes);
        }
      }
      if (iterations > 1) {
        const Piece last = {of_state.base + state_step, lane};
        const Piece last_adjoint = {of_adjoint.base + adjoint_step, lane};
        AddIteration<kWidth, false, true>(in, at, i, of_state, last, last_adjoint, votes);
      }
      state.base += kStateFloats, adjoint.base += kAdjointFloats;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int64_t child = at.Child(in, min(i + c, in.children - 1));
        float dpose[kH];
        LoadMatrix(in.poses + child * kH, poses[c]);  // again: meanwhile the registers had better use
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const float* dvotes = votes[c].dvotes + r * 4;
            dpose[r * 4 + q] = dvotes[0] * w[c][q * 4];
#pragma unroll
            for (int n = 0; n < 4; ++n) {
              if (n > 0) dpose[r * 4 + q] = fmaf(dvotes[n], w[c][q * 4 + n], dpose[r * 4 + q]);
              dw[c][q * 4 + n] = fmaf(poses[c][r * 4 + q], dvotes[n], dw[c][q * 4 + n]);
            }
          }
        // The next pose is on its way while this one's gradient is reduced.
        LoadMatrix(in.poses + following.Child(in, min(i + c, in.children - 1)) * kH, poses[c]);
        ReduceScatter<kWidth>(rank, dpose);
        const bool writes = at.sample && i + c < in.children;
        if (writes && rank % kTwins == 0) {
#pragma unroll
          for (int n = 0; n < kLeft; ++n) out.dposes[child * kH + rank * kH / kWidth + n] = dpose[n];
        }
        if (writes && out.dactivations && rank == 0) {
          const float activation = in.activations[child];
          out.dactivations[child] =
              activation > kActivationFloor ? votes[c].dlog_activation * Reciprocal(activation) : 0.0f;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < C; ++c) {
      // Joins the groups of the warp.
#pragma unroll
      for (int offset = kWidth; offset < kWarp; offset <<= 1) {
#pragma unroll
        for (int n = 0; n < kH; ++n) dw[c][n] += __shfl_xor_sync(kAllLanes, dw[c][n], offset);
        votes[c].dbias += __shfl_xor_sync(kAllLanes, votes[c].dbias, offset);
      }
      if (lane >= in.parents || i + c >= in.children) continue;
      const int64_t row = (int64_t{split} * in.children + i + c) * in.parents + lane;
#pragma unroll
      for (int n = 0; n < kH; ++n) out.dweights[row * kH + n] = dw[c][n];
      if (out.dbias) out.dbias[row] = votes[c].dbias;
    }
  }
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_EM_CUDA_GRADIENT_CUH_
