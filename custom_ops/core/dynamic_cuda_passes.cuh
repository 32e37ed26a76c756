// Dynamic routing on tensor cores: sums over children, gradients, and how the work is divided. A tile is that
// of dynamic_cuda_tiles.cuh.
#ifndef TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_PASSES_CUH_
#define TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_PASSES_CUH_

#include "dynamic_cuda_tiles.cuh"

namespace tfinv {
namespace cuda {

// The lane's parts of votes . V become couplings and, backward, those of votes . dsum dlogits.
template <int J, bool kBackward>
__device__ void FinishCouplings(const TileInputs& in, int64_t i, float (&couplings)[J][2],
                                float (&gradients)[J][2]) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
    const float bias = in.Bias(i, j);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      couplings[j][r] = SumOfFour(couplings[j][r]) + bias;
      if constexpr (kBackward) gradients[j][r] = SumOfFour(gradients[j][r]);
    }
  }
  TileSoftmax<J>(couplings);
  if constexpr (kBackward) TileSoftmaxGradient<J>(couplings, gradients);
}

struct TileWork {
  int64_t groups, splits, children_per_split;  // groups of as many tiles as a block has warps
};

// What a warp of the passes below does: a tile, and the children of a split.
struct TileUnit {
  int64_t split, begin, start, count, child;

  __device__ TileUnit(const TileInputs& in, const TileWork& work, int64_t unit)
      : split(unit / work.groups), start(split * work.children_per_split) {
    const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
    begin = (unit % work.groups * warps + warp) * kTileRows;
    count = min(work.children_per_split, in.children - start);
    // Each warp begins with another child, or all of them would wait for the same matrices to arrive.
    child = count * warp / warps;
  }
  __device__ void Next() { child = child + 1 == count ? 0 : child + 1; }
  __device__ float* Row(const TileInputs& in, const TilePlace& place, int r, float* partial) const {
    return partial + (split * in.batch + place.samples[r]) * in.parents * 16 + 4 * place.column;
  }
};

// The first iteration, in which V is 0 and couplings are those of the bias.
// partial[split, b, j] = sum over the children of the split of coupling * vote.
template <int J>
__global__ void __launch_bounds__(kTileWarps* kWarp, 1)
    TileFirstKernel(TileInputs in, TileWork work, float* partial) {
  for (int64_t number = blockIdx.x; number < work.groups * work.splits; number += gridDim.x) {
    TileUnit unit(in, work, number);
    if (unit.begin >= in.batch) continue;
    const TilePlace place(unit.begin, in.batch);
    TileRows sums[J] = {};
    for (int64_t n = 0; n < unit.count; ++n, unit.Next()) {
      const int64_t i = unit.start + unit.child;
      const SplitFloats<4> poses = LoadPoses(in, place, i);
      float couplings[J][2];
#pragma unroll
      for (int j = 0; j < J; ++j) couplings[j][0] = couplings[j][1] = in.Bias(i, j);
      TileSoftmax<J>(couplings);
#pragma unroll
      for (int j = 0; j < J; ++j)
        sums[j].Add(ComputeVotes(poses, in.weights + (i * J + j) * 128, place), couplings[j]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int j = 0; j < J; ++j)
        if (place.used[r]) sums[j].Store(unit.Row(in, place, r, partial) + j * 16, r);
  }
}

// A later iteration: the same, or, backward, the sum of dlogit * vote.
template <int J, bool kBackward>
__global__ void __launch_bounds__(kTileWarps* kWarp, 1)
    TileAccumulateKernel(TileInputs in, const float* agreements, const float* dsums, TileWork work,
                         float* partial) {
  for (int64_t number = blockIdx.x; number < work.groups * work.splits; number += gridDim.x) {
    TileUnit unit(in, work, number);
    if (unit.begin >= in.batch) continue;
    const TilePlace place(unit.begin, in.batch);
    const TileArray all_agreements(agreements, unit.begin, J);
    const TileArray all_dsums(kBackward ? dsums : agreements, unit.begin, J);
    TileRows sums[J] = {};
    for (int64_t n = 0; n < unit.count; ++n, unit.Next()) {
      const int64_t i = unit.start + unit.child;
      const SplitFloats<4> poses = LoadPoses(in, place, i);
      TileRows votes[J];
      float couplings[J][2], gradients[J][2];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        votes[j] = ComputeVotes(poses, in.weights + (i * J + j) * 128, place);
        TileRows other;
        if constexpr (kBackward) {
          other.Load(all_dsums, j);
          gradients[j][0] = votes[j].Dot(other, 0), gradients[j][1] = votes[j].Dot(other, 1);
        }
        other.Load(all_agreements, j);
        couplings[j][0] = votes[j].Dot(other, 0), couplings[j][1] = votes[j].Dot(other, 1);
      }
      FinishCouplings<J, kBackward>(in, i, couplings, gradients);
#pragma unroll
      for (int j = 0; j < J; ++j) sums[j].Add(votes[j], kBackward ? gradients[j] : couplings[j]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int j = 0; j < J; ++j)
        if (place.used[r]) sums[j].Store(unit.Row(in, place, r, partial) + j * 16, r);
  }
}

// ---------------------------------------------------------------------------------------------------------
// Gradients of poses, weights and bias: a warp has one child and walks over the tiles of its split.

constexpr int kGradientWarps = 4, kTransposeStride = 24;  // 8 lanes of one row, 4 rows: no bank twice

// Floats of shared memory of a warp: dvotes to transpose, then dweights as the lanes hold products.
inline __host__ __device__ constexpr int GradientFloats(int parents) {
  return kTileRows * kTransposeStride + parents * kWarp * 4;
}

struct TileGradientWork {
  int64_t tiles, splits, tiles_per_split, chunks;  // chunks of as many children as a block has warps
};

template <int J>
__global__ void __launch_bounds__(kGradientWarps* kWarp, 2)
    TileGradientKernel(TileInputs in, const float* agreements, const float* dsums, int64_t step_stride,
                       int iterations, TileGradientWork work, Gradients out) {
  TFINV_SHARED(shared);
  const int warp = threadIdx.x / kWarp;
  float* transposed = shared + warp * GradientFloats(J);
  // Registers are needed elsewhere.
  float* dweights = transposed + kTileRows * kTransposeStride + threadIdx.x % kWarp * 4;
  for (int64_t unit = blockIdx.x; unit < work.chunks * work.splits; unit += gridDim.x) {
    const int64_t split = unit / work.chunks, i = unit % work.chunks * kGradientWarps + warp;
    if (i >= in.children) continue;
    const float* matrices = in.weights + i * J * 128;
    float dbias[J] = {};
#pragma unroll
    for (int j = 0; j < J; ++j) *reinterpret_cast<float4*>(dweights + j * 128) = {0.0f, 0.0f, 0.0f, 0.0f};
    const int64_t start = split * work.tiles_per_split;
    const int64_t count = min(work.tiles_per_split, work.tiles - start);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t tile = start + (n + warp) % count;  // not all warps wait for the same tile
      const TilePlace place(tile * kTileRows, in.batch);
      const int row = place.row, column = place.column;
      TileRows dvotes[J] = {};
      {
        const SplitFloats<4> poses = LoadPoses(in, place, i);
        for (int step = 0; step < iterations; ++step) {
          const TileArray all_agreements(agreements + step * step_stride, tile * kTileRows, J);
          const TileArray all_dsums(dsums + step * step_stride, tile * kTileRows, J);
          float couplings[J][2], gradients[J][2];
#pragma unroll
          for (int j = 0; j < J; ++j) {
            const TileRows votes = ComputeVotes(poses, matrices + j * 128, place);
            TileRows other;
            other.Load(all_dsums, j);
            gradients[j][0] = votes.Dot(other, 0), gradients[j][1] = votes.Dot(other, 1);
            couplings[j][0] = couplings[j][1] = 0.0f;
            if (step > 0) {
              other.Load(all_agreements, j);
              couplings[j][0] = votes.Dot(other, 0), couplings[j][1] = votes.Dot(other, 1);
            }
          }
          FinishCouplings<J, true>(in, i, couplings, gradients);
#pragma unroll
          for (int j = 0; j < J; ++j) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              if (!place.used[r]) couplings[j][r] = gradients[j][r] = 0.0f;
              dbias[j] += gradients[j][r];
            }
            TileRows other;
            other.Load(all_dsums, j);
            dvotes[j].Add(other, couplings[j]);
            if (step > 0) {
              other.Load(all_agreements, j);
              dvotes[j].Add(other, gradients[j]);
            }
          }
        }
      }

      // dposes [16, 8] = dvotes [16, 16 J] @ transposed matrices; two sums, as each waits for a product.
      float dposes[2][4] = {};
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const float4 w = *reinterpret_cast<const float4*>(matrices + j * 128 + row * 16 + 4 * column);
        const float ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          SplitFloats<4> left;
          SplitFloats<2> right;
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            left.Set(2 * k, dvotes[j].x[0][2 * half + k]);
            left.Set(2 * k + 1, dvotes[j].x[1][2 * half + k]);
            right.Set(k, ws[2 * half + k]);
          }
          MultiplyAdd(dposes[half], left, right);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!place.used[r]) continue;
        float* target = out.dposes + (place.samples[r] * in.children + i) * 8 + 2 * column;
        target[0] = dposes[0][2 * r] + dposes[1][2 * r];
        target[1] = dposes[0][2 * r + 1] + dposes[1][2 * r + 1];
      }

      // dmatrix transposed [16, 8] += dvotes transposed @ poses: samples t and t + 4 of each half of a tile.
      SplitFloats<2> poses[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int64_t b = min(tile * kTileRows + 8 * half + 4 * k + column, in.batch - 1);
          poses[half].Set(k, in.Pose(b, i)[row]);
        }
#pragma unroll
      for (int j = 0; j < J; ++j) {
        __syncwarp();  // nobody reads the parent before
#pragma unroll
        for (int r = 0; r < 2; ++r)
          dvotes[j].Store(transposed + (row + 8 * r) * kTransposeStride + 4 * column, r);
        __syncwarp();
        float dmatrix[4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          SplitFloats<4> left;
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const float* from = transposed + (8 * half + 4 * k + column) * kTransposeStride + row;
            left.Set(2 * k, from[0]);
            left.Set(2 * k + 1, from[8]);
          }
          MultiplyAdd(dmatrix, left, poses[half]);
        }
        float4& total = *reinterpret_cast<float4*>(dweights + j * 128);
        total.x += dmatrix[0], total.y += dmatrix[1], total.z += dmatrix[2], total.w += dmatrix[3];
      }
    }

    const int row = threadIdx.x % kWarp / 4, column = threadIdx.x % 4;
    const int64_t first = (split * in.children + i) * J;
#pragma unroll
    for (int j = 0; j < J; ++j) {
      float* target = out.dweights + (first + j) * 128 + 2 * column * 16 + row;
      const float4 total = *reinterpret_cast<const float4*>(dweights + j * 128);
      target[0] = total.x, target[16] = total.y;
      target[8] = total.z, target[24] = total.w;
      // Each of the four lanes of a row has the same dlogits.
      if (out.dbias) {
        float sum = dbias[j];
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
        if (threadIdx.x % kWarp == 0) out.dbias[first + j] = sum;
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------

struct TilePlan {
  int warps;
  TileWork work;
  TileGradientWork gradient;
  int64_t partial_floats;
};

inline TilePlan PlanTiles(int64_t batch, int64_t children, int64_t parents) {
  TilePlan plan;
  const int64_t tiles = CeilDiv(batch, kTileRows);
  TileWork& work = plan.work;
  work.groups = CeilDiv(tiles, kTileWarps);
  plan.warps = static_cast<int>(CeilDiv(tiles, work.groups));
  // All blocks at once, so that none is left alone at the end; but a few children for each.
  const int64_t resident = kMultiprocessors * (kTileWarps / plan.warps);
  const int64_t row_bytes = batch * parents * 16 * kFloat;
  int64_t splits = Least(Most(1, resident / work.groups), CeilDiv(children, 4));
  splits = Least(splits, Most(1, kPartialBytes / row_bytes));
  work.children_per_split = CeilDiv(children, splits);
  work.splits = CeilDiv(children, work.children_per_split);
  plan.partial_floats = work.splits * batch * parents * 16;

  TileGradientWork& gradient = plan.gradient;
  gradient.tiles = tiles;
  gradient.chunks = CeilDiv(children, kGradientWarps);
  const int64_t weight_bytes = children * parents * 128 * kFloat;
  const int64_t wanted = CeilDiv(4 * kMultiprocessors * kTileWarps, gradient.chunks * kGradientWarps);
  splits = Least(Least(wanted, tiles), Most(1, Least(32, kPartialBytes / weight_bytes)));
  gradient.tiles_per_split = CeilDiv(tiles, splits);
  gradient.splits = CeilDiv(tiles, gradient.tiles_per_split);
  return plan;
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_PASSES_CUH_
