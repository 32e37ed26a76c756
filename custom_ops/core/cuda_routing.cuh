// The passes that dynamic and EM routing share. A `Step` knows the maths of one iteration: the logit of a
// vote, what is summed over the children, and, backward, the gradient `dlogr` of the log coupling. These
// kernels walk over children, samples and parents, recompute the votes, and do the softmax over parents:
//   logr[i,j] = logit[i,j] - log sum over j of exp logit[i,j];  dlogit = dlogr - exp(logr) * sum_j dlogr.
#ifndef TFINV_CUSTOM_OPS_CORE_CUDA_ROUTING_CUH_
#define TFINV_CUSTOM_OPS_CORE_CUDA_ROUTING_CUH_

#include "cuda_votes.cuh"

namespace tfinv {
namespace cuda {

template <class V>
struct Inputs {
  V kind;
  int64_t batch, children;
  int parents;
  const float *poses, *weights, *bias;

  __device__ const float* Pose(int64_t b, int64_t i) const {
    return poses + (b * children + i) * kind.Pose();
  }
  __device__ float Bias(int64_t i, int j) const { return bias ? bias[i * parents + j] : 0.0f; }
};

// What a softmax over the parents takes where a group of lanes does not see all of them: [B, I] of an
// iteration.
struct Normalisers {
  float *largest, *log_sum, *dlogr_sum;

  __device__ float LogSoftmax(float logit, int64_t at) const { return (logit - largest[at]) - log_sum[at]; }
};

// ---------------------------------------------------------------------------------------------------------
// Weights of a few children and a tile of parents: staged in shared memory, or read where they lie.

template <class V>
struct Staging {
  static constexpr int kStride = V::kWeight + 4;  // the lanes of a quarter warp then meet no bank twice
  static int64_t Bytes(int children, int width) {
    return V::kFixed ? int64_t{children} * width * kStride * static_cast<int64_t>(sizeof(float)) : 0;
  }
  static __device__ void Fill(const Inputs<V>& in, const Lanes& lanes, int64_t child, int count, int parent,
                              float* shared) {
    if constexpr (V::kFixed) {
      constexpr int kQuads = V::kWeight / 4;
      __syncthreads();  // nobody reads the previous children any more
      for (int n = threadIdx.x; n < count * lanes.width * kQuads; n += blockDim.x) {
        const int row = n / kQuads, quad = n % kQuads;
        const int64_t i = child + row / lanes.width;
        const int j = min(parent + row % lanes.width, in.parents - 1);
        reinterpret_cast<float4*>(shared + row * kStride)[quad] =
            reinterpret_cast<const float4*>(in.weights + (i * in.parents + j) * V::kWeight)[quad];
      }
      __syncthreads();
    }
  }
  static __device__ const float* Matrix(const Inputs<V>& in, const Lanes& lanes, const Place& place,
                                        const float* shared, int offset, int64_t i, int j) {
    if constexpr (V::kFixed) return shared + (offset * lanes.width + place.rank) * kStride;
    return in.weights + (i * in.parents + j) * in.kind.Weight();
  }
};

// How the children of a pass are divided over blocks.
struct ChildWork {
  int64_t batch_tiles, splits, children_per_split;
  int stage, sums;
  int64_t Count(const Lanes& lanes) const { return batch_tiles * splits * lanes.parent_tiles; }
};

// partial[split, b, j] = the sums of Step over the children of the split.
template <class Step>
__global__ void __launch_bounds__(kMaxThreads)
    AccumulateKernel(Inputs<typename Step::Kind> in, typename Step::Data data, Lanes lanes, ChildWork work,
                     int step, Normalisers normalisers, float* partial) {
  using V = typename Step::Kind;
  constexpr int S = Step::kSamples;
  TFINV_SHARED(shared);
  const Place place(lanes);
  const int64_t count = work.batch_tiles * work.splits * lanes.parent_tiles;
  for (int64_t unit = blockIdx.x; unit < count; unit += gridDim.x) {
    const int tile = static_cast<int>(unit % lanes.parent_tiles) * lanes.width;
    const int64_t batch_tile = unit / lanes.parent_tiles % work.batch_tiles;
    const int64_t split = unit / lanes.parent_tiles / work.batch_tiles;
    const int j = min(tile + place.rank, in.parents - 1);
    Step steps[S];
    Sums<Step::kSums> sums[S];
    int64_t samples[S];
    bool used[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const int64_t b = (batch_tile * lanes.Slots() + place.slot) * S + s;
      used[s] = place.used && b < in.batch && tile + place.rank < in.parents;
      samples[s] = b < in.batch ? b : in.batch - 1;
      steps[s].Load(in, data, samples[s], j, step);
      sums[s].Begin(partial + ((split * in.batch + samples[s]) * in.parents + j) * work.sums, work.sums,
                    used[s]);
      if (used[s]) steps[s].Begin(in, sums[s]);
    }
    const int64_t end = min((split + 1) * work.children_per_split, in.children);
    for (int64_t child = split * work.children_per_split; child < end; child += work.stage) {
      const int staged = static_cast<int>(min(int64_t{work.stage}, end - child));
      Staging<V>::Fill(in, lanes, child, staged, tile, shared);
      for (int offset = 0; offset < staged; ++offset) {
        const int64_t i = child + offset;
        const float* poses[S];
#pragma unroll
        for (int s = 0; s < S; ++s) poses[s] = in.Pose(samples[s], i);
        typename V::Votes votes[S];
        in.kind.Compute(poses, Staging<V>::Matrix(in, lanes, place, shared, offset, i, j), votes);
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const int64_t place_of_child = samples[s] * in.children + i;
          const float logit = steps[s].Logit(in, votes[s], i, j, step);
          const float logr =
              lanes.Wide() ? normalisers.LogSoftmax(logit, place_of_child) : GroupLogSoftmax(logit, place);
          if constexpr (Step::kBackward) {
            const float dlogr = steps[s].LogCouplingGradient(in, data, votes[s], logr, samples[s], i);
            const float total =
                lanes.Wide() ? normalisers.dlogr_sum[place_of_child] : ReduceGroup<Sum>(dlogr, place);
            if (used[s]) steps[s].Accumulate(in, votes[s], dlogr - expf(logr) * total, sums[s]);
          } else {
            if (used[s]) steps[s].Accumulate(in, data, votes[s], logr, samples[s], i, sums[s]);
          }
        }
      }
    }
#pragma unroll
    for (int s = 0; s < S; ++s)
      sums[s].End(partial + ((split * in.batch + samples[s]) * in.parents + j) * work.sums, used[s]);
  }
}

constexpr int kNormaliserChildren = 2;

// More than 32 parents: fills `normalisers`, first all but dlogr_sum, then that. A warp has one sample.
template <class Step, bool kGradient>
__global__ void __launch_bounds__(kMaxThreads)
    NormaliserKernel(Inputs<typename Step::Kind> in, typename Step::Data data, Lanes lanes, int step,
                     Normalisers normalisers) {
  using V = typename Step::Kind;
  TFINV_SHARED(shared);
  const Place place(lanes);
  const int64_t batch_tiles = CeilDiv(in.batch, lanes.warps);
  const int64_t count = batch_tiles * CeilDiv(in.children, kNormaliserChildren);
  for (int64_t unit = blockIdx.x; unit < count; unit += gridDim.x) {
    const int64_t slot = unit % batch_tiles * lanes.warps + place.slot;
    const int64_t b = min(slot, in.batch - 1), child = unit / batch_tiles * kNormaliserChildren;
    const int staged = static_cast<int>(min(int64_t{kNormaliserChildren}, in.children - child));
    float largest[kNormaliserChildren], sum[kNormaliserChildren];
#pragma unroll
    for (int c = 0; c < kNormaliserChildren; ++c) largest[c] = -FLT_MAX, sum[c] = 0.0f;
    for (int tile = 0; tile < in.parents; tile += lanes.width) {
      const int j = min(tile + place.rank, in.parents - 1);
      const bool used = tile + place.rank < in.parents;
      Step state;
      state.Load(in, data, b, j, step);
      Staging<V>::Fill(in, lanes, child, staged, tile, shared);
#pragma unroll
      for (int c = 0; c < kNormaliserChildren; ++c) {
        if (c >= staged || !used) continue;
        const int64_t i = child + c;
        const float* const poses[1] = {in.Pose(b, i)};
        typename V::Votes votes[1];
        in.kind.Compute(poses, Staging<V>::Matrix(in, lanes, place, shared, c, i, j), votes);
        const float logit = state.Logit(in, votes[0], i, j, step);
        if constexpr (kGradient) {
          const float logr = normalisers.LogSoftmax(logit, b * in.children + i);
          sum[c] += state.LogCouplingGradient(in, data, votes[0], logr, b, i);
        } else {
          const float larger = fmaxf(largest[c], logit);
          sum[c] = sum[c] * expf(largest[c] - larger) + expf(logit - larger);
          largest[c] = larger;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kNormaliserChildren; ++c) {
      const bool writes = place.rank == 0 && slot < in.batch && c < staged;
      const int64_t at = b * in.children + child + c;
      if constexpr (kGradient) {
        const float total = ReduceWarp<Sum>(sum[c]);
        if (writes) normalisers.dlogr_sum[at] = total;
      } else {
        const float larger = ReduceWarp<Maximum>(largest[c]);
        const float total = ReduceWarp<Sum>(sum[c] * expf(largest[c] - larger));
        if (writes) normalisers.largest[at] = larger, normalisers.log_sum[at] = logf(total);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------
// Gradients of poses, weights, bias and activations, given everything that belongs to (b, j).

struct Gradients {
  float *dposes, *dweights, *dbias, *dactivations;  // dweights, dbias: one array for each split of the batch
};

struct RowWork {
  int64_t batch_tiles, splits, tiles_per_split, child_chunks;
  int children;                          // of a chunk
  int row;                               // floats of a row
  int64_t rows_offset, dweights_offset;  // in shared memory, in floats
  float* scratch;                        // rows, where shared memory is too small for them
};

template <class Step>
__global__ void __launch_bounds__(kRowThreads)
    VoteGradientKernel(Inputs<typename Step::Kind> in, typename Step::Data data, Lanes lanes, RowWork work,
                       int iterations, Normalisers normalisers, Gradients out) {
  using V = typename Step::Kind;
  TFINV_SHARED(shared);
  const Place place(lanes);
  const int width = lanes.width, slots = lanes.Slots();
  const int extra = V::kFixed ? V::kVote + V::kPose : in.kind.Vote();  // of a row: dbias, then dactivations
  float* rows = work.scratch ? work.scratch + int64_t{blockIdx.x} * slots * width * work.row
                             : shared + work.rows_offset;
  float* own_row = rows + (int64_t{place.slot} * width + place.rank) * work.row;
  for (int64_t unit = blockIdx.x; unit < work.child_chunks * work.splits; unit += gridDim.x) {
    const int64_t split = unit / work.child_chunks, child = unit % work.child_chunks * work.children;
    const int chunk = static_cast<int>(min(int64_t{work.children}, in.children - child));
    const int64_t tile_begin = split * work.tiles_per_split;
    const int64_t tile_end = min(tile_begin + work.tiles_per_split, work.batch_tiles);
    for (int parent = 0; parent < in.parents; parent += width) {
      const int j = min(parent + place.rank, in.parents - 1), present = min(width, in.parents - parent);
      Staging<V>::Fill(in, lanes, child, chunk, parent, shared);
      for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
        const bool first = tile == tile_begin;
        const int64_t b0 = tile * slots, b = min(b0 + place.slot, in.batch - 1);
        const int samples = static_cast<int>(min(int64_t{slots}, in.batch - b0));
        const bool used = place.used && place.slot < samples && place.rank < present;
        for (int c = 0; c < chunk; ++c) {
          const int64_t i = child + c;
          const float* matrix = Staging<V>::Matrix(in, lanes, place, shared, c, i, j);
          {  // each thread: dvotes of its sample and parent
            const float* const poses[1] = {in.Pose(b, i)};
            typename V::Votes votes[1];
            in.kind.Compute(poses, matrix, votes);
            Sums<V::kVote> dvotes;
            dvotes.Begin(own_row, in.kind.Vote(), used);
            float dbias = 0.0f, dlog_activation = 0.0f;
            for (int step = 0; step < iterations; ++step) {
              Step state;
              state.Load(in, data, b, j, step);
              const int64_t at = (step * in.batch + b) * in.children + i;
              const float logit = state.Logit(in, votes[0], i, j, step);
              const float logr =
                  lanes.Wide() ? normalisers.LogSoftmax(logit, at) : GroupLogSoftmax(logit, place);
              const float dlogr = state.LogCouplingGradient(in, data, votes[0], logr, b, i);
              const float total = lanes.Wide() ? normalisers.dlogr_sum[at] : ReduceGroup<Sum>(dlogr, place);
              const float dlogit = dlogr - expf(logr) * total;
              if (used) state.AddVoteGradient(in, votes[0], logr, dlogit, step, dvotes);
              if (Step::kBiasInEveryStep || step == 0) dbias += dlogit;
              dlog_activation += dlogr;
            }
            if (used) {
              if constexpr (V::kFixed) {
                dvotes.End(own_row, true);
                in.kind.PoseGradient(dvotes.x, matrix, own_row + V::kVote);
              }
              own_row[extra] = dbias;
              own_row[extra + 1] = dlog_activation;
            }
          }
          __syncthreads();
          // Sums over parents, and over the samples of this block.
          for (int n = threadIdx.x; n < samples * in.kind.Pose(); n += blockDim.x) {
            const int s = n / in.kind.Pose(), k = n % in.kind.Pose();
            float sum = 0.0f;
            for (int p = 0; p < present; ++p) {
              const float* row = rows + (int64_t{s} * width + p) * work.row;
              if constexpr (V::kFixed)
                sum += row[V::kVote + k];
              else
                sum += in.kind.PoseElement(row, in.weights + (i * in.parents + parent + p) * in.kind.Weight(),
                                           k);
            }
            float& target = out.dposes[((b0 + s) * in.children + i) * in.kind.Pose() + k];
            target = parent == 0 ? sum : target + sum;
          }
          if (out.dactivations) {
            for (int s = threadIdx.x; s < samples; s += blockDim.x) {
              float sum = 0.0f;
              for (int p = 0; p < present; ++p) sum += rows[(int64_t{s} * width + p) * work.row + extra + 1];
              sum = Step::ActivationGradient(data, (b0 + s) * in.children + i, sum);
              float& target = out.dactivations[(b0 + s) * in.children + i];
              target = parent == 0 ? sum : target + sum;
            }
          }
          const int64_t weight_row = (split * in.children + i) * in.parents + parent;
          if (out.dbias) {
            for (int p = threadIdx.x; p < present; p += blockDim.x) {
              float sum = 0.0f;
              for (int s = 0; s < samples; ++s) sum += rows[(int64_t{s} * width + p) * work.row + extra];
              float& target = out.dbias[weight_row + p];
              target = first ? sum : target + sum;
            }
          }
          if constexpr (V::kFixed) {
            float* dweights = shared + work.dweights_offset + c * width * V::kWeight;
            for (int n = threadIdx.x; n < present * V::kWeightTiles; n += blockDim.x) {
              const int p = n / V::kWeightTiles;
              typename V::WeightTile sum(n % V::kWeightTiles);
              for (int s = 0; s < samples; ++s)
                sum.Add(in.Pose(b0 + s, i), rows + (s * width + p) * work.row);
              sum.Store(dweights + p * V::kWeight, first);
            }
          } else {
            const int64_t size = in.kind.Weight();
            for (int64_t n = threadIdx.x; n < present * size; n += blockDim.x) {
              const int p = static_cast<int>(n / size);
              float sum = 0.0f;
              for (int s = 0; s < samples; ++s)
                sum += in.kind.WeightElement(in.Pose(b0 + s, i), rows + (int64_t{s} * width + p) * work.row,
                                             n % size);
              float& target = out.dweights[(weight_row + p) * size + n % size];
              target = first ? sum : target + sum;
            }
          }
          __syncthreads();
        }
      }
      if constexpr (V::kFixed) {
        const int floats = present * V::kWeight;
        for (int n = threadIdx.x; n < chunk * floats; n += blockDim.x) {
          const int c = n / floats;
          const int64_t row = (split * in.children + child + c) * in.parents + parent;
          out.dweights[row * V::kWeight + n % floats] =
              shared[work.dweights_offset + c * width * V::kWeight + n % floats];
        }
      }
    }
  }
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_CUDA_ROUTING_CUH_
