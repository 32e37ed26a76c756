// EM routing on a CUDA device: the small passes over [B, J], and the launchers. The maths is in routing.h,
// that of one vote in em_cuda_steps.cuh, the passes over votes in cuda_routing.cuh. Poses of 4 x 4 with at
// most 32 parents have passes of their own, in em_cuda_fixed_launch.cuh.
#include "em_cuda_fixed_launch.cuh"
#include "em_cuda_steps.cuh"

namespace tfinv {
namespace cuda {
namespace {

// Statistics of one iteration from the parts: means, variances, logmass. A warp has one parent of one sample.
__global__ void MomentsKernel(const float* partial, int64_t parts, int64_t rows, int size, float floor,
                              float* statistics) {
  const int lane = threadIdx.x % kWarp, floats = 2 * size + 2;
  for (int64_t row = WarpIndex(); row < rows; row += WarpCount()) {
    const float* first = partial + row * floats;
    const int64_t stride = rows * floats;
    float largest = -FLT_MAX, mass = 0.0f;
    for (int64_t part = 0; part < parts; ++part) largest = fmaxf(largest, first[part * stride + 2 * size]);
    for (int64_t part = 0; part < parts; ++part)
      mass += expf(first[part * stride + 2 * size] - largest) * first[part * stride + 2 * size + 1];
    float* out = statistics + row * (2 * size + 1);
    for (int h = lane; h < size; h += kWarp) {
      float mean = 0.0f, squares = 0.0f, before = 0.0f;
      for (int64_t part = 0; part < parts; ++part) {  // Chan et al. 1979: joins the parts one by one
        const float* from = first + part * stride;
        const float scale = expf(from[2 * size] - largest), weight = scale * from[2 * size + 1];
        if (weight == 0.0f) continue;
        const float share = weight / (before + weight), deviation = from[h] - mean;
        mean = fmaf(share, deviation, mean);
        squares += scale * from[size + h] + before * share * deviation * deviation;
        before += weight;
      }
      out[h] = mean;
      out[size + h] = squares / before + floor;
    }
    if (lane == 0) out[2 * size] = largest + logf(mass);
  }
}

struct Activation {
  const float *beta_u, *beta_a;
  EmVariant variant;
  float inverse_temperature;
};

// States of one iteration from its statistics; the outputs, if asked for. A warp has one sample.
__global__ void ActivateKernel(const float* statistics, Activation activation, int64_t batch, int parents,
                               int size, float* states, float* outputs, float* output_activations) {
  const int lane = threadIdx.x % kWarp, floats = RowFloats(size);
  for (int64_t b = WarpIndex(); b < batch; b += WarpCount()) {
    float largest = -FLT_MAX;
    for (int j = lane; j < parents; j += kWarp) {
      const float* from = statistics + (b * parents + j) * (2 * size + 1);
      float* state = states + (b * parents + j) * floats;
      float half = 0.0f;
      for (int h = 0; h < size; ++h) {
        state[h] = from[h];
        state[size + h] = 1.0f / from[size + h];
        half += 0.5f * logf(from[size + h]);
        if (outputs) outputs[(b * parents + j) * size + h] = from[h];
      }
      const float cost = expf(from[2 * size]) * (activation.beta_u[j] + half);
      const float x = activation.inverse_temperature * (activation.beta_a[j] - cost);
      state[2 * size + kLogMass] = from[2 * size];
      state[2 * size + kHalfLogVariance] = half;
      state[2 * size + kLogActivation] = x;
      largest = fmaxf(largest, x);
    }
    float log_sum = 0.0f;
    if (activation.variant == EmVariant::kArticle) {
      largest = ReduceWarp<Maximum>(largest);
      float sum = 0.0f;
      for (int j = lane; j < parents; j += kWarp)
        sum += expf(states[(b * parents + j) * floats + 2 * size + kLogActivation] - largest);
      log_sum = largest + logf(ReduceWarp<Sum>(sum));
    }
    for (int j = lane; j < parents; j += kWarp) {
      float* state = states + (b * parents + j) * floats + 2 * size;
      const float x = state[kLogActivation];
      const bool article = activation.variant == EmVariant::kArticle;
      const float loga = article ? x - log_sum : fminf(x, 0.0f) - log1pf(expf(-fabsf(x)));
      state[kLogActivation] = loga;
      state[kConstant] = loga - state[kHalfLogVariance];
      if (output_activations) output_activations[b * parents + j] = expf(loga);
    }
  }
}

// Adjoints of one iteration from the parts of the later E-step, or, without any, from the output's gradients.
__global__ void AdjointKernel(const float* partial, int64_t parts, const float* doutputs,
                              const float* doutput_activations, int64_t rows, int size, const float* states,
                              float* adjoints) {
  const int lane = threadIdx.x % kWarp, floats = RowFloats(size), sums = 2 * size + 1;
  for (int64_t row = WarpIndex(); row < rows; row += WarpCount()) {
    const float* state = states + row * floats;
    float* adjoint = adjoints + row * floats;
    float dloga = 0.0f;
    if (doutputs)
      dloga = expf(state[2 * size + kLogActivation]) * doutput_activations[row];
    else
      dloga = SumOfParts(partial, parts, rows * sums, row * sums + 2 * size);
    for (int h = lane; h < size; h += kWarp) {
      if (doutputs) {
        adjoint[h] = doutputs[row * size + h];
        adjoint[size + h] = 0.0f;
      } else {
        adjoint[h] = SumOfParts(partial, parts, rows * sums, row * sums + h);
        const float squares = SumOfParts(partial, parts, rows * sums, row * sums + size + h);
        adjoint[size + h] = 0.5f * (squares - dloga * state[size + h]);
      }
    }
    if (lane == 0) adjoint[2 * size + kDlogActivation] = dloga;
  }
}

// Adds what the parents' activations hand back to variances, masses and betas. A warp has one sample.
__global__ void ActivationGradientKernel(const float* statistics, Activation activation, int64_t batch,
                                         int parents, int size, float floor, const float* states,
                                         float* adjoints, float* dbeta_u, float* dbeta_a, bool first) {
  const int lane = threadIdx.x % kWarp, floats = RowFloats(size);
  const bool article = activation.variant == EmVariant::kArticle;
  for (int64_t b = WarpIndex(); b < batch; b += WarpCount()) {
    float total = 0.0f;
    for (int j = lane; article && j < parents; j += kWarp)
      total += adjoints[(b * parents + j) * floats + 2 * size + kDlogActivation];
    if (article) total = ReduceWarp<Sum>(total);
    for (int j = lane; j < parents; j += kWarp) {
      const int64_t row = b * parents + j;
      const float *state = states + row * floats, *variance = statistics + row * (2 * size + 1) + size;
      float* adjoint = adjoints + row * floats;
      const float dloga = adjoint[2 * size + kDlogActivation], loga = state[2 * size + kLogActivation];
      const float dx = article ? dloga - expf(loga) * total : -dloga * expm1f(loga);
      const float dlinear = activation.inverse_temperature * dx;
      const float dcost = -dlinear * expf(state[2 * size + kLogMass]);
      float dlog_coupling = dcost * (activation.beta_u[j] + state[2 * size + kHalfLogVariance]);
      for (int h = 0; h < size; ++h) {
        const float dvariance = fmaf(0.5f * dcost, state[size + h], adjoint[size + h]);
        adjoint[size + h] = dvariance;
        dlog_coupling = fmaf(floor - variance[h], dvariance, dlog_coupling);
      }
      adjoint[2 * size + kDlogCoupling] = dlog_coupling;
      dbeta_u[row] = first ? dcost : dbeta_u[row] + dcost;
      dbeta_a[row] = first ? dlinear : dbeta_a[row] + dlinear;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------

const float* Weighing(const EmDims& dims, const EmArrays& arrays) {
  return dims.variant == EmVariant::kHinton2018 ? arrays.activations : nullptr;
}
Activation ActivationOf(const EmDims& dims, const EmArrays& arrays, int step) {
  return {arrays.beta_u, arrays.beta_a, dims.variant, dims.inverse_temperatures[step]};
}

template <class V>
size_t Forward(const EmDims& dims, const V& kind, const EmArrays& arrays, float* outputs,
               float* output_activations, float* statistics, void* memory, Stream* stream) {
  using Step = EmRoute<V>;
  const int64_t B = dims.batch, I = dims.children, J = dims.parents;
  const int H = kind.Vote(), parents = static_cast<int>(J);
  const AccumulatePlan plan = PlanAccumulate<V>(B, I, J, Step::kSamples, 2 * H + 2);
  Workspace workspace(memory);
  float* partial = workspace.Take(plan.partial_floats);
  float* states = workspace.Take(B * J * RowFloats(H));
  const Normalisers normalisers = TakeNormalisers(workspace, B, I, J, 1, false);
  if (!stream) return workspace.used;

  const Inputs<V> in = {kind, B, I, parents, arrays.poses, arrays.weights, arrays.bias};
  const EmData data = {states, nullptr, Weighing(dims, arrays), 0};
  for (int step = 0; step < dims.iterations; ++step) {
    LaunchNormaliser<Step, false>(*stream, in, data, step, normalisers);
    LaunchAccumulate<Step>(*stream, plan, in, data, step, normalisers, partial);
    float* of_step = statistics + step * B * J * (2 * H + 1);
    stream->Launch(&MomentsKernel, RowBlocks(B * J), kMaxThreads, 0, partial, plan.work.splits, B * J, H,
                   dims.variance_floor, of_step);
    const bool last = step == dims.iterations - 1;
    stream->Launch(&ActivateKernel, RowBlocks(B), kMaxThreads, 0, of_step, ActivationOf(dims, arrays, step),
                   B, parents, H, states, last ? outputs : nullptr, last ? output_activations : nullptr);
  }
  return workspace.used;
}

template <class V>
size_t Backward(const EmDims& dims, const V& kind, const EmArrays& arrays, const EmOutputGradients& given,
                const Gradients& out, void* memory, Stream* stream) {
  using Step = EmAdjoint<V>;
  const int64_t B = dims.batch, I = dims.children, J = dims.parents;
  const int H = kind.Vote(), R = dims.iterations, parents = static_cast<int>(J);
  const AccumulatePlan plan = PlanAccumulate<V>(B, I, J, Step::kSamples, 2 * H + 1);
  const RowPlan rows = PlanRows(kind, B, I, J);
  const int64_t stride = B * J * RowFloats(H);
  Workspace workspace(memory);
  float* partial = workspace.Take(plan.partial_floats);
  float* states = workspace.Take(R * stride);
  float* adjoints = workspace.Take(R * stride);
  float* dbeta_u = workspace.Take(B * J);
  float* dbeta_a = workspace.Take(B * J);
  const Normalisers all = TakeNormalisers(workspace, B, I, J, R, true);
  const GradientPieces pieces = TakeGradientPieces(
      workspace, rows.work.splits, I * J * kind.Weight(), I * J, rows.scratch_floats);
  if (!stream) return workspace.used;

  const Inputs<V> in = {kind, B, I, parents, arrays.poses, arrays.weights, arrays.bias};
  const EmData data = {states, adjoints, Weighing(dims, arrays), stride};
  const float* none = nullptr;
  float* no_output = nullptr;
  for (int step = 0; step < R; ++step)
    stream->Launch(&ActivateKernel, RowBlocks(B), kMaxThreads, 0,
                   given.statistics + step * B * J * (2 * H + 1), ActivationOf(dims, arrays, step), B,
                   parents, H, states + step * stride, no_output, no_output);
  for (int step = R - 1; step >= 0; --step) {
    const bool last = step == R - 1;
    stream->Launch(&AdjointKernel, RowBlocks(B * J), kMaxThreads, 0, partial, plan.work.splits,
                   last ? given.doutputs : none, given.doutput_activations, B * J, H, states + step * stride,
                   adjoints + step * stride);
    stream->Launch(&ActivationGradientKernel, RowBlocks(B), kMaxThreads, 0,
                   given.statistics + step * B * J * (2 * H + 1), ActivationOf(dims, arrays, step), B,
                   parents, H, dims.variance_floor, states + step * stride, adjoints + step * stride, dbeta_u,
                   dbeta_a, last);
    const Normalisers normalisers = OfStep(all, B, I, step);
    LaunchNormaliser<EmRoute<V>, false>(*stream, in, data, step, normalisers);
    LaunchNormaliser<Step, true>(*stream, in, data, step, normalisers);
    if (step > 0) LaunchAccumulate<Step>(*stream, plan, in, data, step, normalisers, partial);
  }
  LaunchBatchSum(*stream, dbeta_u, dbeta_a, B, J, given);
  LaunchVoteGradient<Step>(*stream, rows, in, data, R, all, pieces, out);
  return workspace.used;
}

using FixedEm = EmVotes<4>;
using AnyEm = EmVotes<0>;

AnyEm AnyOf(const EmDims& dims) { return {static_cast<int>(dims.pose_size)}; }
const char* Check(const EmDims& dims) {
  if (dims.pose_size > 1 << 14) return "a pose edge above 2^14 is not supported";
  return CheckSizes(dims.children, dims.parents, dims.pose_size, dims.pose_size * dims.pose_size);
}

}  // namespace
}  // namespace cuda

size_t EmCudaWorkspaceBytes(const EmDims& dims, bool backward) {
  using namespace cuda;
  if (dims.batch < 1 || Check(dims)) return 0;
  const auto bytes = [&](const auto& kind) {
    return backward ? Backward(dims, kind, EmArrays{}, EmOutputGradients{}, Gradients{}, nullptr, nullptr)
                    : Forward(dims, kind, EmArrays{}, nullptr, nullptr, nullptr, nullptr, nullptr);
  };
  const size_t any = bytes(AnyOf(dims));
  size_t fixed = 0;
  if (HasOwnPasses(dims))
    fixed = backward ? BackwardFixed(dims, EmArrays{}, EmOutputGradients{}, Gradients{}, nullptr, nullptr)
                     : ForwardFixed(dims, EmArrays{}, nullptr, nullptr, nullptr, nullptr, nullptr);
  else if (dims.pose_size == 4)
    fixed = bytes(FixedEm{});
  return any > fixed ? any : fixed;  // which of the two runs depends on the alignment of the arrays too
}

const char* EmForwardCuda(const EmDims& dims, const float* poses, const float* activations,
                          const float* weights, const float* beta_u, const float* beta_a, const float* bias,
                          float* outputs, float* output_activations, float* statistics, void* workspace,
                          void* stream_handle) {
  using namespace cuda;
  if (const char* error = Check(dims)) return error;
  Stream stream(stream_handle);
  if (dims.batch < 1) return nullptr;
  const EmArrays arrays = {poses, activations, weights, beta_u, beta_a, bias};
  const bool fixed = dims.pose_size == 4 && Aligned(poses) && Aligned(weights);
  if (fixed && HasOwnPasses(dims))
    ForwardFixed(dims, arrays, outputs, output_activations, statistics, workspace, &stream);
  else if (fixed)
    Forward(dims, FixedEm{}, arrays, outputs, output_activations, statistics, workspace, &stream);
  else
    Forward(dims, AnyOf(dims), arrays, outputs, output_activations, statistics, workspace, &stream);
  return stream.error;
}

const char* EmBackwardCuda(const EmDims& dims, const float* poses, const float* activations,
                           const float* weights, const float* beta_u, const float* beta_a, const float* bias,
                           const float* statistics, const float* doutputs, const float* doutput_activations,
                           float* dposes, float* dactivations, float* dweights, float* dbeta_u,
                           float* dbeta_a, float* dbias, void* workspace, void* stream_handle) {
  using namespace cuda;
  if (const char* error = Check(dims)) return error;
  Stream stream(stream_handle);
  const bool weighing = dims.variant == EmVariant::kHinton2018;
  if (!weighing) stream.Zero(dactivations, dims.batch * dims.children);
  if (dims.batch < 1) {
    const int64_t biases = dims.children * dims.parents;
    stream.Zero(dweights, biases * dims.pose_size * dims.pose_size);
    stream.Zero(dbias, biases);
    stream.Zero(dbeta_u, dims.parents);
    stream.Zero(dbeta_a, dims.parents);
    return stream.error;
  }
  const EmArrays arrays = {poses, activations, weights, beta_u, beta_a, bias};
  const EmOutputGradients given = {statistics, doutputs, doutput_activations, dbeta_u, dbeta_a};
  const Gradients out = {dposes, dweights, dbias, weighing ? dactivations : nullptr};
  const bool fixed = dims.pose_size == 4 && Aligned(poses) && Aligned(weights);
  if (fixed && HasOwnPasses(dims))
    BackwardFixed(dims, arrays, given, out, workspace, &stream);
  else if (fixed)
    Backward(dims, FixedEm{}, arrays, given, out, workspace, &stream);
  else
    Backward(dims, AnyOf(dims), arrays, given, out, workspace, &stream);
  return stream.error;
}

}  // namespace tfinv
