// One iteration of dynamic routing, as the passes of cuda_routing.cuh want to know it. The maths is in
// dynamic_cuda.cu.
#ifndef TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_STEPS_CUH_
#define TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_STEPS_CUH_

#include "cuda_plan.cuh"

namespace tfinv {
namespace cuda {

struct DynamicData {
  const float *agreements, *dsums;  // V_t and dsums_t of all iterations, or V_t of the current one
  int64_t step_stride;
};

template <class V>
struct DynamicRoute {
  using Kind = V;
  using Data = DynamicData;
  static constexpr bool kBackward = false;
  static constexpr int kSamples = V::kSamples, kSums = V::kVote;
  Vector<V::kVote> agreement;

  __device__ void Load(const Inputs<V>& in, const Data& data, int64_t b, int j, int step) {
    if (step > 0)
      agreement.Load(data.agreements + step * data.step_stride + (b * in.parents + j) * in.kind.Vote());
  }
  __device__ float Logit(const Inputs<V>& in, const typename V::Votes& votes, int64_t i, int j,
                         int step) const {
    float logit = in.Bias(i, j);
    if (step == 0) return logit;
#pragma unroll
    for (int d = 0; d < in.kind.Vote(); ++d) logit = fmaf(votes[d], agreement[d], logit);
    return logit;
  }
  __device__ void Begin(const Inputs<V>&, Sums<kSums>&) const {}
  __device__ void Accumulate(const Inputs<V>& in, const Data&, const typename V::Votes& votes, float logr,
                             int64_t, int64_t, Sums<kSums>& sums) const {
    const float coupling = expf(logr);
#pragma unroll
    for (int d = 0; d < in.kind.Vote(); ++d) sums[d] = fmaf(coupling, votes[d], sums[d]);
  }
};

template <class V>
struct DynamicAdjoint {
  using Kind = V;
  using Data = DynamicData;
  static constexpr bool kBackward = true, kBiasInEveryStep = true;
  static constexpr int kSamples = V::kSamples, kSums = V::kVote;
  DynamicRoute<V> route;
  Vector<V::kVote> dsum;

  __device__ void Load(const Inputs<V>& in, const Data& data, int64_t b, int j, int step) {
    route.Load(in, data, b, j, step);
    dsum.Load(data.dsums + step * data.step_stride + (b * in.parents + j) * in.kind.Vote());
  }
  __device__ float Logit(const Inputs<V>& in, const typename V::Votes& votes, int64_t i, int j,
                         int step) const {
    return route.Logit(in, votes, i, j, step);
  }
  __device__ float LogCouplingGradient(const Inputs<V>& in, const Data&, const typename V::Votes& votes,
                                       float logr, int64_t, int64_t) const {
    float dcoupling = 0.0f;
#pragma unroll
    for (int d = 0; d < in.kind.Vote(); ++d) dcoupling = fmaf(votes[d], dsum[d], dcoupling);
    return expf(logr) * dcoupling;
  }
  __device__ void Begin(const Inputs<V>&, Sums<kSums>&) const {}
  __device__ void Accumulate(const Inputs<V>& in, const typename V::Votes& votes, float dlogit,
                             Sums<kSums>& sums) const {
#pragma unroll
    for (int d = 0; d < in.kind.Vote(); ++d) sums[d] = fmaf(dlogit, votes[d], sums[d]);
  }
  __device__ void AddVoteGradient(const Inputs<V>& in, const typename V::Votes&, float logr, float dlogit,
                                  int step, Sums<V::kVote>& dvotes) const {
    const float coupling = expf(logr);
#pragma unroll
    for (int d = 0; d < in.kind.Vote(); ++d) {
      dvotes[d] = fmaf(coupling, dsum[d], dvotes[d]);
      if (step > 0) dvotes[d] = fmaf(dlogit, route.agreement[d], dvotes[d]);
    }
  }
  __device__ static float ActivationGradient(const Data&, int64_t, float) { return 0.0f; }
};

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_DYNAMIC_CUDA_STEPS_CUH_
