// One iteration of EM routing, as the passes of cuda_routing.cuh want to know it. The maths is in routing.h.
//
// Workspace rows of one parent of one sample, after one iteration:
//   state   mean [H], 1 / variance [H], constant = loga - half, logmass, loga, half = 1/2 sum of log variance
//   adjoint dmean [H], dvariance [H], dlogmass - sum over h of (variance - floor) dvariance, dloga
#ifndef TFINV_CUSTOM_OPS_CORE_EM_CUDA_STEPS_CUH_
#define TFINV_CUSTOM_OPS_CORE_EM_CUDA_STEPS_CUH_

#include "cuda_plan.cuh"

namespace tfinv {
namespace cuda {

constexpr int kConstant = 0, kLogMass = 1, kLogActivation = 2,
              kHalfLogVariance = 3;                    // behind 2 H, in a state
constexpr int kDlogCoupling = 0, kDlogActivation = 1;  // likewise, in an adjoint

inline __host__ __device__ int RowFloats(int size) { return (2 * size + 4 + 3) / 4 * 4; }

struct EmData {
  const float *states, *adjoints;  // [R, B, J, row], or the states of the latest iteration alone
  const float* activations;        // null where they do not weigh the children: the article's variant
  int64_t step_stride;

  template <class V>
  __device__ int64_t Row(const Inputs<V>& in, int64_t b, int j) const {
    return (b * in.parents + j) * RowFloats(in.kind.Vote());
  }
  __device__ float LogActivation(int64_t at) const {
    return activations ? logf(AtLeast(kActivationFloor, activations[at])) : 0.0f;
  }
};

template <class V>
struct EmRoute {
  using Kind = V;
  using Data = EmData;
  static constexpr bool kBackward = false;
  static constexpr int kSamples = 1, kSums = V::kFixed ? 2 * V::kVote + 2 : 0;
  Vector<V::kVote> mean, inverse;
  float constant;

  __device__ void Load(const Inputs<V>& in, const Data& data, int64_t b, int j, int step) {
    if (step == 0) return;
    const float* row = data.states + (step - 1) * data.step_stride + data.Row(in, b, j);
    const int size = in.kind.Vote();
    mean.Load(row);
    inverse.Load(row + size);
    constant = row[2 * size + kConstant];
  }
  __device__ float Logit(const Inputs<V>& in, const typename V::Votes& votes, int64_t i, int j,
                         int step) const {
    if (step == 0) return in.Bias(i, j);
    float distance = 0.0f;
#pragma unroll
    for (int h = 0; h < in.kind.Vote(); ++h) {
      const float deviation = votes[h] - mean[h];
      distance = fmaf(deviation * deviation, inverse[h], distance);
    }
    return constant - 0.5f * distance;
  }

  // Sums: mean [H], squared deviations [H], the largest log weight, and the weight relative to it (West
  // 1979).
  __device__ void Begin(const Inputs<V>& in, Sums<kSums>& sums) const { sums[2 * in.kind.Vote()] = -FLT_MAX; }
  __device__ void Accumulate(const Inputs<V>& in, const Data& data, const typename V::Votes& votes,
                             float logr, int64_t b, int64_t i, Sums<kSums>& sums) const {
    const int size = in.kind.Vote();
    float &largest = sums[2 * size], &weight = sums[2 * size + 1];
    const float log_weight = logr + data.LogActivation(b * in.children + i);
    const float larger = fmaxf(largest, log_weight);
    const float shrink = expf(largest - larger), added = expf(log_weight - larger);
    largest = larger;
    const float before = weight * shrink;
    weight = before + added;
    // Where nothing has a weight yet, as after a bias of -inf, nothing is shared; a weight of NaN is kept.
    const float part = weight == 0.0f ? 0.0f : 1.0f / weight, share = added * part, spread = before * share;
#pragma unroll
    for (int h = 0; h < size; ++h) {
      const float deviation = votes[h] - sums[h];
      sums[h] = fmaf(share, deviation, sums[h]);
      sums[size + h] = fmaf(spread * deviation, deviation, sums[size + h] * shrink);
    }
  }
};

template <class V>
struct EmAdjoint {
  using Kind = V;
  using Data = EmData;
  static constexpr bool kBackward = true, kBiasInEveryStep = false;
  static constexpr int kSamples = 1, kSums = V::kFixed ? 2 * V::kVote + 1 : 0;
  EmRoute<V> route;  // with the state that the logits were made from
  Vector<V::kVote> mean, dmean, dvariance;
  float logmass, dlog_coupling, rho;

  __device__ void Load(const Inputs<V>& in, const Data& data, int64_t b, int j, int step) {
    route.Load(in, data, b, j, step);
    const int64_t row = step * data.step_stride + data.Row(in, b, j);
    const int size = in.kind.Vote();
    mean.Load(data.states + row);
    logmass = data.states[row + 2 * size + kLogMass];
    dmean.Load(data.adjoints + row);
    dvariance.Load(data.adjoints + row + size);
    dlog_coupling = data.adjoints[row + 2 * size + kDlogCoupling];
  }
  __device__ float Logit(const Inputs<V>& in, const typename V::Votes& votes, int64_t i, int j,
                         int step) const {
    return route.Logit(in, votes, i, j, step);
  }
  // rho * (dlogmass + sum over h of (vote - mean) dmean + ((vote - mean)^2 - (variance - floor)) dvariance)
  __device__ float LogCouplingGradient(const Inputs<V>& in, const Data& data, const typename V::Votes& votes,
                                       float logr, int64_t b, int64_t i) {
    float sum = dlog_coupling;
#pragma unroll
    for (int h = 0; h < in.kind.Vote(); ++h) {
      const float deviation = votes[h] - mean[h];
      sum = fmaf(deviation, fmaf(deviation, dvariance[h], dmean[h]), sum);
    }
    rho = expf(logr + data.LogActivation(b * in.children + i) - logmass);
    return rho * sum;
  }

  // Sums, with z = (vote - mean) / variance: of dlogit z [H], dlogit z^2 [H], dlogit.
  __device__ void Begin(const Inputs<V>&, Sums<kSums>&) const {}
  __device__ void Accumulate(const Inputs<V>& in, const typename V::Votes& votes, float dlogit,
                             Sums<kSums>& sums) const {
    const int size = in.kind.Vote();
#pragma unroll
    for (int h = 0; h < size; ++h) {
      const float z = (votes[h] - route.mean[h]) * route.inverse[h];
      sums[h] = fmaf(dlogit, z, sums[h]);
      sums[size + h] = fmaf(dlogit * z, z, sums[size + h]);
    }
    sums[2 * size] += dlogit;
  }
  __device__ void AddVoteGradient(const Inputs<V>& in, const typename V::Votes& votes, float, float dlogit,
                                  int step, Sums<V::kVote>& dvotes) const {
#pragma unroll
    for (int h = 0; h < in.kind.Vote(); ++h) {
      const float vote = votes[h];
      float dvote = rho * fmaf(2.0f * (vote - mean[h]), dvariance[h], dmean[h]);
      if (step > 0) dvote -= dlogit * (vote - route.mean[h]) * route.inverse[h];
      dvotes[h] += dvote;
    }
  }
  __device__ static float ActivationGradient(const Data& data, int64_t at, float dlog_activation) {
    const float activation = data.activations[at];
    return activation > kActivationFloor ? dlog_activation / activation : 0.0f;
  }
};

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_EM_CUDA_STEPS_CUH_
