// EM routing of poses of 4 x 4 and at most 32 parents: gradients of poses, weights, bias and activations,
// given everything that belongs to (b, j). The layout is in em_cuda_tiles.cuh.
//
// A warp has one child and goes through the tiles of a split; the child's weights and their gradient stay in
// registers. The warps of a block read the same states at about the same time, so that most of what they read
// comes from the first-level cache. Warps never wait for each other.
#ifndef TFINV_CUSTOM_OPS_CORE_EM_CUDA_GRADIENT_CUH_
#define TFINV_CUSTOM_OPS_CORE_EM_CUDA_GRADIENT_CUH_

#include "em_cuda_tiles.cuh"

namespace tfinv {
namespace cuda {

constexpr int kGradientThreads = 384;

struct FixedGradientWork {
  int chunks, splits, tiles_per_split;  // chunks of as many children as a block has warps
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

// One vote, and what the iterations add to its gradients.
template <int kWidth>
struct VoteGradient {
  float votes[kH], dvotes[kH], deviations[kH];  // of the vote from the mean of the latest iteration
  float log_activation, dlog_activation, dbias;

  template <bool kFirst>
  __device__ void Add(const FixedInputs& in, const Tile<kWidth>& at, int i, const Piece& earlier,
                      const Piece& now, const Piece& adjoint) {
    Coupling coupling;
    float z[kH];  // precision (vote - mean), of the earlier iteration
    if constexpr (kFirst) {
      coupling = FirstCoupling(in, at, i);
    } else {
      float distance[2] = {0.0f, 0.0f};
      earlier.Load(kPrecision, z);
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        z[h] *= deviations[h];
        distance[h % 2] = fmaf(z[h], deviations[h], distance[h % 2]);
      }
      coupling = Softmax<kWidth>(earlier[kConstantAt] - (distance[0] + distance[1]), at.parent);
    }
    // The gradient of the log coupling is rho `gradient`, and its own in the vote rho `slope`.
    float slope[kH], gradient[2] = {adjoint[kDlogCouplingAt], 0.0f};
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const float4 m = now.Quad(kMean, quad), d = adjoint.Quad(kDmean, quad);
      const float4 v = adjoint.Quad(kDvariance, quad);
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
    const float rho = at.used ? Exp2(coupling.log + log_activation - now[kLogMassAt]) : 0.0f;
    const float dlogr = rho * (gradient[0] + gradient[1]), total = ReduceLanes<kWidth, Sum>(dlogr);
    const float dlogit = at.used ? fmaf(-coupling.value, total, dlogr) : 0.0f;
    if constexpr (kFirst) {
      dlog_activation = total;
      dbias += dlogit;
#pragma unroll
      for (int h = 0; h < kH; ++h) dvotes[h] = rho * slope[h];
    } else {
      dlog_activation += total;
      const float dz = -2.0f * kLn2 * dlogit;
#pragma unroll
      for (int h = 0; h < kH; ++h) dvotes[h] = fmaf(rho, slope[h], fmaf(dz, z[h], dvotes[h]));
    }
  }
};

template <int kWidth>
__global__ void __launch_bounds__(kGradientThreads, 1)
    FixedGradientKernel(FixedInputs in, FixedGradientWork work, int iterations, const float* states,
                        const float* adjoints, Gradients out) {
  constexpr int kLeft = kWidth >= kH ? 1 : kH / kWidth;
  constexpr int kTwins = kWidth > kH ? kWidth / kH : 1;  // lanes that are left with the same sum of dposes
  const int lane = threadIdx.x % kWarp, rank = lane % kWidth;
  const int64_t state_step = in.tiles * int64_t{kStateFloats};
  const int64_t adjoint_step = in.tiles * int64_t{kAdjointFloats};
  for (int unit = blockIdx.x; unit < work.chunks * work.splits; unit += gridDim.x) {
    const int split = unit / work.chunks;
    const int i = unit % work.chunks * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (i >= in.children) continue;
    const int tile_begin = split * work.tiles_per_split;
    const int tile_end = min(tile_begin + work.tiles_per_split, in.tiles);
    float w[kH], dw[kH] = {};
    LoadMatrix(in.weights + (int64_t{i} * in.parents + min(rank, in.parents - 1)) * kH, w);
    VoteGradient<kWidth> vote;
    vote.dbias = 0.0f;
    Piece state = {states + int64_t{tile_begin} * kStateFloats, lane};
    Piece adjoint = {adjoints + int64_t{tile_begin} * kAdjointFloats, lane};
    float pose[kH];
    LoadMatrix(in.poses + Tile<kWidth>(in, tile_begin).Child(in, i) * kH, pose);
#pragma unroll 1
    for (int tile = tile_begin; tile < tile_end; ++tile) {
      const Tile<kWidth> at(in, tile);
      const int64_t child = at.Child(in, i);
      const float activation = in.Activation(child);
      vote.log_activation = LogActivation(activation);
      Multiply(pose, w, vote.votes);
      vote.template Add<true>(in, at, i, state, state, adjoint);
      Piece of_state = state, of_adjoint = adjoint;
#pragma unroll 1
      for (int step = 1; step < iterations; ++step) {
        const Piece earlier = of_state;
        of_state.base += state_step, of_adjoint.base += adjoint_step;
        vote.template Add<false>(in, at, i, earlier, of_state, of_adjoint);
      }
      state.base += kStateFloats, adjoint.base += kAdjointFloats;
      float dpose[kH];
      LoadMatrix(in.poses + child * kH, pose);  // again: meanwhile the registers had better use
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float* dvotes = vote.dvotes + r * 4;
          dpose[r * 4 + q] = dvotes[0] * w[q * 4];
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (c > 0) dpose[r * 4 + q] = fmaf(dvotes[c], w[q * 4 + c], dpose[r * 4 + q]);
            dw[q * 4 + c] = fmaf(pose[r * 4 + q], dvotes[c], dw[q * 4 + c]);
          }
        }
      // The next pose is on its way while this one's gradient is reduced.
      LoadMatrix(in.poses + Tile<kWidth>(in, min(tile + 1, tile_end - 1)).Child(in, i) * kH, pose);
      ReduceScatter<kWidth>(rank, dpose);
      if (!at.sample) continue;
      if (rank % kTwins == 0) {
#pragma unroll
        for (int n = 0; n < kLeft; ++n) out.dposes[child * kH + rank * kH / kWidth + n] = dpose[n];
      }
      if (out.dactivations && rank == 0)
        out.dactivations[child] =
            activation > kActivationFloor ? vote.dlog_activation * Reciprocal(activation) : 0.0f;
    }
    // Joins the groups of the warp.
#pragma unroll
    for (int offset = kWidth; offset < kWarp; offset <<= 1) {
#pragma unroll
      for (int n = 0; n < kH; ++n) dw[n] += __shfl_xor_sync(kAllLanes, dw[n], offset);
      vote.dbias += __shfl_xor_sync(kAllLanes, vote.dbias, offset);
    }
    if (lane >= in.parents) continue;
    const int64_t row = (int64_t{split} * in.children + i) * in.parents + lane;
#pragma unroll
    for (int n = 0; n < kH; ++n) out.dweights[row * kH + n] = dw[n];
    if (out.dbias) out.dbias[row] = vote.dbias;
  }
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_EM_CUDA_GRADIENT_CUH_
