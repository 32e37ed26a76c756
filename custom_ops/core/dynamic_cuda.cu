// Dynamic routing on a CUDA device. The maths is in routing.h; the passes are in cuda_routing.cuh, and those on
// tensor cores in dynamic_cuda_passes.cuh.
//
// With V_t = v_1 + ... + v_{t-1}, logits_t = bias + votes . V_t: nothing of size [B, I, J] is kept. The
// gradient, for t = R ... 1, with dv_R = doutputs plus the dV of later iterations:
//   dsums_t = squash backward of dv_t;  dlogr_t[i,j] = coupling_t[i,j] * votes[i,j] . dsums_t[j]
//   dV_t[j] = sum over i of dlogits_t[i,j] votes[i,j];  dv_{t-1} = sum over later t of dV_t
//   dvotes[i,j] = sum over t of coupling_t[i,j] dsums_t[j] + dlogits_t[i,j] V_t[j]
#include "dynamic_cuda_passes.cuh"
#include "dynamic_cuda_steps.cuh"

namespace tfinv {
namespace cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Small passes over [B, J, D].

struct Squash {
  float length, factor;  // v = factor * s
  __device__ explicit Squash(float squared) : length(sqrtf(squared)), factor(length / (1.0f + squared)) {}
  // ds = factor * dv + Radial(s . dv) * s
  __device__ float Radial(float dot) const {
    if (length == 0.0f) return 0.0f;
    const float squared = length * length, above = 1.0f + squared;
    return (1.0f - squared) / (above * above) / length * dot;
  }
};

// partial[part, at] summed over the parts: each warp of the block sums some, the first one, in order, all.
// The others get nothing of use. All threads must call it; `at` is that of the lane, or negative for none.
__device__ inline float SumPartsOfBlock(const float* partial, int64_t parts, int64_t count, int64_t at,
                                        float* shared) {
  float sum = 0.0f;
  if (at >= 0) {
#pragma unroll 8
    for (int64_t part = threadIdx.x / kWarp; part < parts; part += kMaxThreads / kWarp)
      sum += partial[part * count + at];
  }
  __syncthreads();  // nobody reads the sums before
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarp) return 0.0f;
  for (int other = kWarp + threadIdx.x; other < kMaxThreads; other += kWarp) sum += shared[other];
  return sum;
}

// In the next two kernels the lanes are components of rows, of one that is long or of several short ones.

// sums of one iteration from its partial sums; then the outputs, or V of the next iteration.
__global__ void SquashKernel(Lanes lanes, const float* partial, int64_t parts, int64_t rows, int size,
                             float* sums, float* outputs, float* agreements, RowLayout layout, bool first) {
  TFINV_SHARED(shared);
  const Place place(lanes);
  const int64_t count = rows * size;
  for (int64_t begin = int64_t{blockIdx.x} * lanes.groups; begin < rows;
       begin += int64_t{gridDim.x} * lanes.groups) {
    const int64_t row = begin + threadIdx.x % kWarp / place.width;
    const bool used = place.used && row < rows;
    float squared = 0.0f;
    for (int from = 0; from < size; from += place.width) {
      const int d = from + place.rank;
      const int64_t at = used && d < size ? row * size + d : -1;
      const float sum = SumPartsOfBlock(partial, parts, count, at, shared);
      if (threadIdx.x < kWarp && at >= 0) {
        sums[at] = sum;
        squared = fmaf(sum, sum, squared);
      }
    }
    if (threadIdx.x >= kWarp) continue;
    const Squash squash(ReduceGroup<Sum>(squared, place));
    for (int d = place.rank; used && d < size; d += place.width) {
      const float pose = squash.factor * sums[row * size + d];
      if (outputs) outputs[row * size + d] = pose;
      if (!agreements) continue;
      float& agreement = agreements[layout.At(row, d, size)];
      agreement = first ? pose : agreement + pose;
    }
  }
}

// V of every iteration but the first, from the sums of all.
__global__ void AgreementsKernel(const float* sums, int iterations, int64_t rows, int size, float* agreements,
                                 RowLayout layout, int64_t step_stride) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = WarpIndex(); row < rows; row += WarpCount()) {
    for (int step = 1; step < iterations; ++step) {
      const float* before = sums + ((step - 1) * rows + row) * size;
      float squared = 0.0f;
      for (int d = lane; d < size; d += kWarp) squared = fmaf(before[d], before[d], squared);
      const Squash squash(ReduceWarp<Sum>(squared));
      for (int d = lane; d < size; d += kWarp) {
        const int64_t now = step * step_stride + layout.At(row, d, size);
        agreements[now] = (step == 1 ? 0.0f : agreements[now - step_stride]) + squash.factor * before[d];
      }
    }
  }
}

// dparents += dV, from the partial sums of the later iteration; of the last iteration they are doutputs,
// which reach the earlier ones through V alone. dsums = squash backward of that.
__global__ void SquashGradientKernel(Lanes lanes, const float* partial, int64_t parts, int64_t rows, int size,
                                     const float* sums, float* dparents, float* dsums, RowLayout layout,
                                     bool last) {
  TFINV_SHARED(shared);
  const Place place(lanes);
  const int64_t count = rows * size;
  for (int64_t begin = int64_t{blockIdx.x} * lanes.groups; begin < rows;
       begin += int64_t{gridDim.x} * lanes.groups) {
    const int64_t row = begin + threadIdx.x % kWarp / place.width;
    const bool used = place.used && row < rows;
    float squared = 0.0f, dot = 0.0f;
    for (int from = 0; from < size; from += place.width) {
      const int d = from + place.rank;
      const int64_t at = used && d < size ? row * size + d : -1;
      const float sum = SumPartsOfBlock(partial, parts, count, at, shared);
      if (threadIdx.x >= kWarp || at < 0) continue;
      const float dparent = last ? sum : sum + dparents[at];
      dparents[at] = last ? 0.0f : dparent;
      dsums[layout.At(row, d, size)] = dparent;
      squared = fmaf(sums[at], sums[at], squared);
      dot = fmaf(sums[at], dparent, dot);
    }
    if (threadIdx.x >= kWarp) continue;
    const Squash squash(ReduceGroup<Sum>(squared, place));
    const float radial = squash.Radial(ReduceGroup<Sum>(dot, place));
    for (int d = place.rank; used && d < size; d += place.width) {
      float& dsum = dsums[layout.At(row, d, size)];
      dsum = fmaf(radial, sums[row * size + d], squash.factor * dsum);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------

// The passes over votes of one problem, in the way that the device and the sizes allow.
template <class V>
struct Passes {
  Inputs<V> in;
  AccumulatePlan plan;
  RowPlan rows;
  TilePlan tile_plan;
  bool on_tiles = false;  // on tensor cores

  Passes(const DynamicDims& dims, const V& kind, const float* poses, const float* weights, const float* bias)
      : in{kind, dims.batch, dims.children, static_cast<int>(dims.parents), poses, weights, bias},
        plan(PlanAccumulate<V>(dims.batch, dims.children, dims.parents, V::kSamples, kind.Vote())),
        rows(PlanRows(kind, dims.batch, dims.children, dims.parents)),
        tile_plan{} {
    if constexpr (V::kFixed) on_tiles = dims.parents == kTileParents && HasTensorCores();
    if (on_tiles) tile_plan = PlanTiles(dims.batch, dims.children, dims.parents);
  }
  int64_t PartialFloats() const { return on_tiles ? tile_plan.partial_floats : plan.partial_floats; }

  // Floats of V or of dsums in one iteration, and where they lie.
  int64_t StateFloats() const {
    const int64_t size = in.parents * int64_t{in.kind.Vote()};
    return on_tiles ? CeilDiv(in.batch, kTileRows) * kTileRows * size : in.batch * size;
  }
  RowLayout Layout() const { return RowLayout{on_tiles ? in.parents : 0}; }
  Lanes ComponentLanes() const { return MakeLanes(in.kind.Vote(), 1); }
  int64_t RowGroups() const { return CeilDiv(in.batch * in.parents, ComponentLanes().groups); }
  int64_t Splits() const { return on_tiles ? tile_plan.work.splits : plan.work.splits; }

  // partial [splits, B, J, D]: the sums of Step over the children of each split. Backward not of iteration 0.
  template <class Step>
  void Accumulate(Stream& stream, const DynamicData& data, int step, const Normalisers& normalisers,
                  float* partial) const {
    if constexpr (V::kFixed) {
      if (on_tiles) {
        const TileWork& work = tile_plan.work;
        const int64_t blocks = work.groups * work.splits;
        const int threads = tile_plan.warps * kWarp;
        const float* agreements = data.agreements + step * data.step_stride;
        const float* dsums = Step::kBackward ? data.dsums + step * data.step_stride : nullptr;
        if (step == 0)
          stream.Launch(&TileFirstKernel<kTileParents>, blocks, threads, 0, in, work, partial);
        else
          stream.Launch(&TileAccumulateKernel<kTileParents, Step::kBackward>, blocks, threads, 0, in,
                        agreements, dsums, work, partial);
        return;
      }
    }
    LaunchAccumulate<Step>(stream, plan, in, data, step, normalisers, partial);
  }

  GradientPieces TakePieces(Workspace& workspace) const {
    const int64_t splits = on_tiles ? tile_plan.gradient.splits : rows.work.splits;
    return TakeGradientPieces(workspace, splits, Weights(), Biases(), on_tiles ? 0 : rows.scratch_floats);
  }
  int64_t Biases() const { return in.children * in.parents; }
  int64_t Weights() const { return Biases() * in.kind.Weight(); }

  void Gradient(Stream& stream, const DynamicData& data, int iterations, const Normalisers& normalisers,
                const GradientPieces& pieces, const Gradients& out) const {
    if constexpr (V::kFixed) {
      if (on_tiles) {
        const TileGradientWork& work = tile_plan.gradient;
        const Gradients target = TargetOfSplits(work.splits, pieces, out);
        stream.Launch(&TileGradientKernel<kTileParents>, work.chunks * work.splits, kGradientWarps * kWarp,
                      kGradientWarps * GradientFloats(kTileParents) * kFloat, in, data.agreements, data.dsums,
                      data.step_stride, iterations, work, target);
        LaunchSumOfSplits(stream, work.splits, Weights(), Biases(), pieces, out);
        return;
      }
    }
    LaunchVoteGradient<DynamicAdjoint<V>>(stream, rows, in, data, iterations, normalisers, pieces, out);
  }
};

template <class V>
size_t Forward(const DynamicDims& dims, const V& kind, const float* poses, const float* weights,
               const float* bias, float* outputs, float* sums, void* memory, Stream* stream) {
  using Step = DynamicRoute<V>;
  const int64_t B = dims.batch, I = dims.children, J = dims.parents, D = dims.parent_dim;
  const Passes<V> passes(dims, kind, poses, weights, bias);
  Workspace workspace(memory);
  float* partial = workspace.Take(passes.PartialFloats());
  float* agreements = workspace.Take(passes.StateFloats());
  const Normalisers normalisers = TakeNormalisers(workspace, B, I, J, 1, false);
  if (!stream) return workspace.used;

  const DynamicData data = {agreements, nullptr, 0};
  for (int step = 0; step < dims.iterations; ++step) {
    const bool last = step == dims.iterations - 1;
    LaunchNormaliser<Step, false>(*stream, passes.in, data, step, normalisers);
    passes.template Accumulate<Step>(*stream, data, step, normalisers, partial);
    stream->Launch(&SquashKernel, passes.RowGroups(), kMaxThreads, kMaxThreads * kFloat,
                   passes.ComponentLanes(), partial, passes.Splits(), B * J, static_cast<int>(D),
                   sums + step * B * J * D,
                   last ? outputs : nullptr, last ? nullptr : agreements, passes.Layout(), step == 0);
  }
  return workspace.used;
}

template <class V>
size_t Backward(const DynamicDims& dims, const V& kind, const float* poses, const float* weights,
                const float* bias, const float* sums, const float* doutputs, const Gradients& out,
                void* memory, Stream* stream) {
  using Step = DynamicAdjoint<V>;
  const int64_t B = dims.batch, I = dims.children, J = dims.parents, D = dims.parent_dim;
  const int R = dims.iterations, size = static_cast<int>(D);
  const Passes<V> passes(dims, kind, poses, weights, bias);
  Workspace workspace(memory);
  float* partial = workspace.Take(passes.PartialFloats());
  const int64_t state = passes.StateFloats();
  float* agreements = workspace.Take(R * state);
  float* dsums = workspace.Take(R * state);
  float* dparents = workspace.Take(B * J * D);
  const Normalisers all = TakeNormalisers(workspace, B, I, J, R, true);
  const GradientPieces pieces = passes.TakePieces(workspace);
  if (!stream) return workspace.used;

  const DynamicData data = {agreements, dsums, state};
  if (state != B * J * D) {  // the rows behind the last sample of a tile are multiplied by 0
    stream->Zero(agreements, R * state);
    stream->Zero(dsums, R * state);
  }
  stream->Launch(&AgreementsKernel, RowBlocks(B * J), kMaxThreads, 0, sums, R, B * J, size, agreements,
                 passes.Layout(), state);
  for (int step = R - 1; step >= 0; --step) {
    const bool last = step == R - 1;
    stream->Launch(&SquashGradientKernel, passes.RowGroups(), kMaxThreads, kMaxThreads * kFloat,
                   passes.ComponentLanes(), last ? doutputs : partial,
                   last ? int64_t{1} : passes.Splits(), B * J, size,
                   sums + step * B * J * D, dparents, dsums + step * state, passes.Layout(), last);
    const Normalisers normalisers = OfStep(all, B, I, step);
    LaunchNormaliser<DynamicRoute<V>, false>(*stream, passes.in, data, step, normalisers);
    LaunchNormaliser<Step, true>(*stream, passes.in, data, step, normalisers);
    if (step > 0) passes.template Accumulate<Step>(*stream, data, step, normalisers, partial);
  }
  passes.Gradient(*stream, data, R, all, pieces, out);
  return workspace.used;
}

using FixedDynamic = DynamicVotes<8, 16>;
using AnyDynamic = DynamicVotes<0, 0>;

bool IsFixed(const DynamicDims& dims) { return dims.child_dim == 8 && dims.parent_dim == 16; }
AnyDynamic AnyOf(const DynamicDims& dims) {
  return {static_cast<int>(dims.child_dim), static_cast<int>(dims.parent_dim)};
}
const char* Check(const DynamicDims& dims) {
  return CheckSizes(dims.children, dims.parents, dims.child_dim, dims.parent_dim);
}

}  // namespace
}  // namespace cuda

size_t DynamicCudaWorkspaceBytes(const DynamicDims& dims, bool backward) {
  using namespace cuda;
  if (dims.batch < 1 || Check(dims)) return 0;
  const auto bytes = [&](const auto& kind) {
    return backward ? Backward(dims, kind, nullptr, nullptr, nullptr, nullptr, nullptr, Gradients{}, nullptr,
                               nullptr)
                    : Forward(dims, kind, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
  };
  const size_t any = bytes(AnyOf(dims)), fixed = IsFixed(dims) ? bytes(FixedDynamic{}) : 0;
  return any > fixed ? any : fixed;  // which of the two runs depends on the alignment of the arrays too
}

const char* DynamicForwardCuda(const DynamicDims& dims, const float* poses, const float* weights,
                               const float* bias, float* outputs, float* sums, void* workspace,
                               void* stream_handle) {
  using namespace cuda;
  if (const char* error = Check(dims)) return error;
  Stream stream(stream_handle);
  if (dims.batch < 1) return nullptr;
  if (IsFixed(dims) && Aligned(poses) && Aligned(weights))
    Forward(dims, FixedDynamic{}, poses, weights, bias, outputs, sums, workspace, &stream);
  else
    Forward(dims, AnyOf(dims), poses, weights, bias, outputs, sums, workspace, &stream);
  return stream.error;
}

const char* DynamicBackwardCuda(const DynamicDims& dims, const float* poses, const float* weights,
                                const float* bias, const float* sums, const float* doutputs, float* dposes,
                                float* dweights, float* dbias, void* workspace, void* stream_handle) {
  using namespace cuda;
  if (const char* error = Check(dims)) return error;
  Stream stream(stream_handle);
  const int64_t biases = dims.children * dims.parents;
  if (dims.batch < 1) {
    stream.Zero(dweights, biases * dims.child_dim * dims.parent_dim);
    stream.Zero(dbias, biases);
    return stream.error;
  }
  const Gradients out = {dposes, dweights, dbias, nullptr};
  if (IsFixed(dims) && Aligned(poses) && Aligned(weights))
    Backward(dims, FixedDynamic{}, poses, weights, bias, sums, doutputs, out, workspace, &stream);
  else
    Backward(dims, AnyOf(dims), poses, weights, bias, sums, doutputs, out, workspace, &stream);
  return stream.error;
}

}  // namespace tfinv
