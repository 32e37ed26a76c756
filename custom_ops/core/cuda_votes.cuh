// The two kinds of vote, and what gradients they hand to poses and weights.
//
// DynamicVotes: votes [D] = pose [K] @ matrix [K, D].  EmVotes: votes [P, P] = pose [P, P] @ matrix [P, P].
// With template sizes the votes of a child lie in registers; with sizes 0 each is computed when it is read,
// and any size will do. A "row" holds dvotes [vote], and behind them, in the fixed case, this parent's part
// of dposes.
#ifndef TFINV_CUSTOM_OPS_CORE_CUDA_VOTES_CUH_
#define TFINV_CUSTOM_OPS_CORE_CUDA_VOTES_CUH_

#include "cuda_common.cuh"

namespace tfinv {
namespace cuda {

template <int N>
struct FixedVotes {
  float x[N];
  __device__ float operator[](int n) const { return x[n]; }
};

template <int K, int D>
struct DynamicVotes {
  static constexpr bool kFixed = true;
  static constexpr int kPose = K, kVote = D, kWeight = K * D;
  static constexpr int kSamples = 2;  // a thread's samples share what it reads of the weights
  using Votes = FixedVotes<D>;

  __host__ __device__ static constexpr int Pose() { return K; }
  __host__ __device__ static constexpr int Vote() { return D; }
  __host__ __device__ static constexpr int Weight() { return K * D; }

  template <int S>
  __device__ void Compute(const float* const (&poses)[S], const float* matrix, Votes (&votes)[S]) const {
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int d = 0; d < D; ++d) votes[s].x[d] = 0.0f;
#pragma unroll
    for (int quad = 0; quad < K; quad += 4) {
      float pose[S][4];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const float4 four = *reinterpret_cast<const float4*>(poses[s] + quad);
        pose[s][0] = four.x, pose[s][1] = four.y, pose[s][2] = four.z, pose[s][3] = four.w;
      }
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int d = 0; d < D; d += 4) {
          const float4 w = *reinterpret_cast<const float4*>(matrix + (quad + k) * D + d);
#pragma unroll
          for (int s = 0; s < S; ++s) {
            votes[s].x[d] = fmaf(pose[s][k], w.x, votes[s].x[d]);
            votes[s].x[d + 1] = fmaf(pose[s][k], w.y, votes[s].x[d + 1]);
            votes[s].x[d + 2] = fmaf(pose[s][k], w.z, votes[s].x[d + 2]);
            votes[s].x[d + 3] = fmaf(pose[s][k], w.w, votes[s].x[d + 3]);
          }
        }
    }
  }

  // dpose [K] = matrix @ dvotes.
  __device__ void PoseGradient(const float (&dvotes)[D], const float* matrix, float* dpose) const {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float sum = 0.0f;
#pragma unroll
      for (int d = 0; d < D; d += 4) {
        const float4 w = *reinterpret_cast<const float4*>(matrix + k * D + d);
        sum = fmaf(w.x, dvotes[d],
                   fmaf(w.y, dvotes[d + 1], fmaf(w.z, dvotes[d + 2], fmaf(w.w, dvotes[d + 3], sum))));
      }
      dpose[k] = sum;
    }
  }

  // A thread's share of dmatrix: the block of 4 x 4 that `tile` counts.
  static constexpr int kWeightTiles = K * D / 16;
  struct WeightTile {
    int k, d;
    float x[4][4];
    __device__ WeightTile(int tile) : k(tile / (D / 4) * 4), d(tile % (D / 4) * 4), x{} {}
    __device__ void Add(const float* pose, const float* dvotes) {
      const float4 p = *reinterpret_cast<const float4*>(pose + k);
      const float4 v = *reinterpret_cast<const float4*>(dvotes + d);
      const float ps[4] = {p.x, p.y, p.z, p.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int c = 0; c < 4; ++c) x[a][c] = fmaf(ps[a], vs[c], x[a][c]);
    }
    __device__ void Store(float* dmatrix, bool first) const {
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float& target = dmatrix[(k + a) * D + d + c];
          target = first ? x[a][c] : target + x[a][c];
        }
    }
  };
};

template <>
struct DynamicVotes<0, 0> {
  static constexpr bool kFixed = false;
  static constexpr int kPose = 0, kVote = 0, kWeight = 0, kSamples = 1;
  int pose_size, vote_size;

  struct Votes {
    const float *pose, *matrix;
    int pose_size, vote_size;
    __device__ float operator[](int d) const {
      float sum = 0.0f;
      for (int k = 0; k < pose_size; ++k) sum = fmaf(pose[k], matrix[int64_t{k} * vote_size + d], sum);
      return sum;
    }
  };
  __host__ __device__ int Pose() const { return pose_size; }
  __host__ __device__ int Vote() const { return vote_size; }
  __host__ __device__ int64_t Weight() const { return int64_t{pose_size} * vote_size; }

  template <int S>
  __device__ void Compute(const float* const (&poses)[S], const float* matrix, Votes (&votes)[S]) const {
    for (int s = 0; s < S; ++s) votes[s] = {poses[s], matrix, pose_size, vote_size};
  }
  __device__ float PoseElement(const float* dvotes, const float* matrix, int k) const {
    float sum = 0.0f;
    for (int d = 0; d < vote_size; ++d) sum = fmaf(matrix[int64_t{k} * vote_size + d], dvotes[d], sum);
    return sum;
  }
  __device__ float WeightElement(const float* pose, const float* dvotes, int64_t element) const {
    return pose[element / vote_size] * dvotes[element % vote_size];
  }
};

template <int P>
struct EmVotes {
  static_assert(P == 4, "rows are read as four floats");
  static constexpr bool kFixed = true;
  static constexpr int kPose = P * P, kVote = P * P, kWeight = P * P, kSamples = 1;
  using Votes = FixedVotes<P * P>;

  __host__ __device__ static constexpr int Pose() { return P * P; }
  __host__ __device__ static constexpr int Vote() { return P * P; }
  __host__ __device__ static constexpr int Weight() { return P * P; }

  template <int S>
  __device__ void Compute(const float* const (&poses)[S], const float* matrix, Votes (&votes)[S]) const {
    float w[P * P];
#pragma unroll
    for (int q = 0; q < P; ++q) {
      const float4 four = *reinterpret_cast<const float4*>(matrix + q * P);
      w[q * P] = four.x, w[q * P + 1] = four.y, w[q * P + 2] = four.z, w[q * P + 3] = four.w;
    }
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int r = 0; r < P; ++r) {
        const float4 p = *reinterpret_cast<const float4*>(poses[s] + r * P);
#pragma unroll
        for (int c = 0; c < P; ++c)
          votes[s].x[r * P + c] =
              fmaf(p.x, w[c], fmaf(p.y, w[P + c], fmaf(p.z, w[2 * P + c], p.w * w[3 * P + c])));
      }
  }

  // dpose [P, P] = dvotes @ transposed matrix.
  __device__ void PoseGradient(const float (&dvotes)[P * P], const float* matrix, float* dpose) const {
#pragma unroll
    for (int q = 0; q < P; ++q) {
      const float4 w = *reinterpret_cast<const float4*>(matrix + q * P);
#pragma unroll
      for (int r = 0; r < P; ++r)
        dpose[r * P + q] =
            fmaf(dvotes[r * P], w.x,
                 fmaf(dvotes[r * P + 1], w.y, fmaf(dvotes[r * P + 2], w.z, dvotes[r * P + 3] * w.w)));
    }
  }

  // A thread's share of dmatrix = transposed pose @ dvotes: one row.
  static constexpr int kWeightTiles = P;
  struct WeightTile {
    int q;
    float x[P];
    __device__ WeightTile(int tile) : q(tile), x{} {}
    __device__ void Add(const float* pose, const float* dvotes) {
#pragma unroll
      for (int r = 0; r < P; ++r) {
        const float4 v = *reinterpret_cast<const float4*>(dvotes + r * P);
        const float p = pose[r * P + q];
        x[0] = fmaf(p, v.x, x[0]), x[1] = fmaf(p, v.y, x[1]);
        x[2] = fmaf(p, v.z, x[2]), x[3] = fmaf(p, v.w, x[3]);
      }
    }
    __device__ void Store(float* dmatrix, bool first) const {
#pragma unroll
      for (int c = 0; c < P; ++c) {
        float& target = dmatrix[q * P + c];
        target = first ? x[c] : target + x[c];
      }
    }
  };
};

template <>
struct EmVotes<0> {
  static constexpr bool kFixed = false;
  static constexpr int kPose = 0, kVote = 0, kWeight = 0, kSamples = 1;
  int edge;

  struct Votes {
    const float *pose, *matrix;
    int edge;
    __device__ float operator[](int h) const {
      const int row = h / edge * edge, column = h % edge;
      float sum = 0.0f;
      for (int q = 0; q < edge; ++q) sum = fmaf(pose[row + q], matrix[q * edge + column], sum);
      return sum;
    }
  };
  __host__ __device__ int Pose() const { return edge * edge; }
  __host__ __device__ int Vote() const { return edge * edge; }
  __host__ __device__ int64_t Weight() const { return edge * edge; }

  template <int S>
  __device__ void Compute(const float* const (&poses)[S], const float* matrix, Votes (&votes)[S]) const {
    for (int s = 0; s < S; ++s) votes[s] = {poses[s], matrix, edge};
  }
  __device__ float PoseElement(const float* dvotes, const float* matrix, int k) const {
    const int row = k / edge * edge, q = k % edge;
    float sum = 0.0f;
    for (int c = 0; c < edge; ++c) sum = fmaf(dvotes[row + c], matrix[q * edge + c], sum);
    return sum;
  }
  __device__ float WeightElement(const float* pose, const float* dvotes, int64_t element) const {
    const int q = static_cast<int>(element) / edge, c = static_cast<int>(element) % edge;
    float sum = 0.0f;
    for (int r = 0; r < edge; ++r) sum = fmaf(pose[r * edge + q], dvotes[r * edge + c], sum);
    return sum;
  }
};

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_CUDA_VOTES_CUH_
