// Dynamic routing on tensor cores: tiles of 16 samples, poses of 8, parents of 16, a number of parents known
// beforehand. One warp has one tile and walks over children; the votes of all parents lie in its registers.
//
// A matrix product m16n8k8 leaves rows g and g + 8 of its result with lane 4 g + t. Its columns may be
// numbered at will, and are, so that the lane has components 4 t ... 4 t + 3 of every vote. Single precision
// comes from products of TF32, which have 11 bits: x = high + low, and high high + high low + low high loses
// some 2^-21 of a product (Markidis et al. 2018). Tensor cores cut off what they add, which would bias long sums:
// those over children and over tiles are made in registers.
#ifndef TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_TILES_CUH_
#define TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_TILES_CUH_

#include "cuda_plan.cuh"

namespace tfinv {
namespace cuda {

constexpr int kTileRows = 16, kTileParents = 10, kTileWarps = 8;
using TileInputs = Inputs<DynamicVotes<8, 16>>;

template <int N>
struct SplitFloats {
  float high[N], low[N];
  __device__ void Set(int n, float value) {
    high[n] = RoundToTf32(value);
    low[n] = value - high[n];
  }
};

// c += a b in single precision, for short sums.
__device__ inline void MultiplyAdd(float (&c)[4], const SplitFloats<4>& a, const SplitFloats<2>& b) {
  MultiplyAddTf32(c, a.low, b.high);
  MultiplyAddTf32(c, a.high, b.low);
  MultiplyAddTf32(c, a.high, b.high);
}

// This lane's place in a tile that starts at sample `begin`.
struct TilePlace {
  int row, column;      // g and t of the text above
  int64_t samples[2];   // of rows g and g + 8; the last one again where there are no more
  bool used[2];

  __device__ TilePlace(int64_t begin, int64_t batch)
      : row(threadIdx.x % kWarp / 4), column(threadIdx.x % 4), samples{}, used{} {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t b = begin + row + 8 * r;
      used[r] = b < batch;
      samples[r] = min(b, batch - 1);
    }
  }
};

// Poses of a tile as left factor of the votes.
__device__ inline SplitFloats<4> LoadPoses(const TileInputs& in, const TilePlace& place, int64_t i) {
  SplitFloats<4> poses;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float* pose = in.Pose(place.samples[r], i) + place.column;
    poses.Set(r, pose[0]);
    poses.Set(2 + r, pose[4]);
  }
  return poses;
}

// Where a component of a parent lies in an array of V or dsums: [B, J, D], or for tiles [B / 16, J, 16, 16],
// so that a warp reads neighbours.
struct RowLayout {
  int tile_parents;  // 0: no tiles
  __device__ int64_t At(int64_t row, int d, int size) const {
    if (tile_parents == 0) return row * size + d;
    const int64_t b = row / tile_parents, j = row % tile_parents;
    return ((b / kTileRows * tile_parents + j) * kTileRows + b % kTileRows) * size + d;
  }
};

// Components 4 t ... 4 t + 3 of both rows of a tile of such an array, for each parent.
struct TileArray {
  const float* tile;
  __device__ TileArray(const float* array, int64_t begin, int parents)
      : tile(array + begin * parents * 16 + threadIdx.x % kWarp * 4) {}
};

// The components of one parent.
struct TileRows {
  float x[2][4];
  __device__ void Load(const TileArray& array, int j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float4 four = *reinterpret_cast<const float4*>(array.tile + (2 * j + r) * 128);
      x[r][0] = four.x, x[r][1] = four.y, x[r][2] = four.z, x[r][3] = four.w;
    }
  }
  __device__ void Store(float* row, int r) const {
    *reinterpret_cast<float4*>(row) = {x[r][0], x[r][1], x[r][2], x[r][3]};
  }
  __device__ float Dot(const TileRows& other, int r) const {
    float sum = x[r][0] * other.x[r][0];
#pragma unroll
    for (int n = 1; n < 4; ++n) sum = fmaf(x[r][n], other.x[r][n], sum);
    return sum;
  }
  __device__ void Add(const TileRows& other, const float (&factors)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int n = 0; n < 4; ++n) x[r][n] = fmaf(factors[r], other.x[r][n], x[r][n]);
  }
};

// Votes of a tile for one parent.
__device__ inline TileRows ComputeVotes(const SplitFloats<4>& poses, const float* matrix,
                                        const TilePlace& place) {
  // Rows t and t + 4 of the matrix, columns 2 g (even) and 2 g + 1 (odd).
  const float* from = matrix + place.column * 16 + 2 * place.row;
  const float2 first = *reinterpret_cast<const float2*>(from);
  const float2 second = *reinterpret_cast<const float2*>(from + 64);
  SplitFloats<2> even, odd;
  even.Set(0, first.x), even.Set(1, second.x);
  odd.Set(0, first.y), odd.Set(1, second.y);
  float evens[4] = {}, odds[4] = {};
  MultiplyAdd(evens, poses, even);
  MultiplyAdd(odds, poses, odd);
  return {{{evens[0], odds[0], evens[1], odds[1]}, {evens[2], odds[2], evens[3], odds[3]}}};
}

__device__ inline float SumOfFour(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// logits become couplings.
template <int J>
__device__ void TileSoftmax(float (&logits)[J][2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = logits[0][r], sum = 0.0f;
#pragma unroll
    for (int j = 1; j < J; ++j) largest = fmaxf(largest, logits[j][r]);
#pragma unroll
    for (int j = 0; j < J; ++j) {
      logits[j][r] = __expf(logits[j][r] - largest);
      sum += logits[j][r];
    }
    const float scale = 1.0f / sum;
#pragma unroll
    for (int j = 0; j < J; ++j) logits[j][r] *= scale;
  }
}

// dcouplings become dlogits.
template <int J>
__device__ void TileSoftmaxGradient(const float (&couplings)[J][2], float (&gradients)[J][2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < J; ++j) total = fmaf(couplings[j][r], gradients[j][r], total);
#pragma unroll
    for (int j = 0; j < J; ++j) gradients[j][r] = couplings[j][r] * (gradients[j][r] - total);
  }
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_TILES_CUH_
