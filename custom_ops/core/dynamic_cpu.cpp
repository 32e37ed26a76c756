// Dynamic routing on the CPU: the passes, their tasks and what is kept between them.
//
// A pass is split into ranges of children times groups of sample vectors. Each task sums over its children;
// the partial sums are added in the order of the ranges, so that results do not depend on the threads. A
// range's weights stay in the second-level cache while the groups of samples pass.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "cpu_kernels.h"
#include "routing.h"

namespace tfinv {
namespace {

// Ranges of children, at most. Each has partial sums, which one thread reads from the caches of the others.
constexpr int64_t kRanges = 16;
constexpr int64_t kScattered = 3 * kChildrenTogether;  // children of a task that has no partial sum
// Samples of the gradient at once: as many as have their coupling and dlogits in the third-level cache (32 MiB), so
// that weights and dweights pass few times.
constexpr int64_t kCachedFloats = int64_t{1} << 23;
constexpr int64_t kMostSamples = 128;

int64_t Ceil(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// A block of samples, its poses packed, and the states [J, D] that its passes share.
class Block {
 public:
  Block(const DynamicDims& dims, int64_t first, int64_t count, const float* poses, const Executor& executor)
      : kernels(Kernels()), dims(dims), count(count), executor(executor), lanes(kernels.lanes),
        vectors(Ceil(count, lanes)), groups(Ceil(vectors, kernels.vectors_at_once)),
        range(Ceil(Ceil(dims.children, kRanges), kChildrenTogether) * kChildrenTogether),
        ranges(Ceil(dims.children, range)), components(dims.parents * dims.parent_dim),
        stride(components * lanes + kPad), pose_size(dims.children * dims.child_dim),
        samples(poses + first * pose_size), packed(vectors * pose_size * lanes), partial(ranges * vectors * stride) {}

  float* NewState() {
    states.emplace_back(vectors * stride);
    std::memset(states.back().get(), 0, vectors * stride * sizeof(float));
    return states.back().get();
  }

  // Runs a kernel on all tasks, the first time on poses that each packs before. Calls finish(vector) when the
  // partial sums of the vector are all there.
  template <class Finish>
  void Run(void (*kernel)(const DynamicPass&), const DynamicPass& pass, const Finish& finish) {
    std::vector<std::atomic<int64_t>> left(groups);
    for (std::atomic<int64_t>& tasks : left) tasks = ranges;
    ParallelFor(executor, ranges * groups, [&](int64_t task) {
      const int64_t part = task / groups, group = task % groups, vector = group * kernels.vectors_at_once;
      DynamicPass own = pass;
      own.first_child = part * range;
      own.last_child = std::min(dims.children, own.first_child + range);
      own.vectors = std::min(kernels.vectors_at_once, vectors - vector);
      own.samples = std::min(count - vector * lanes, own.vectors * lanes);
      if (!is_packed)
        for (int64_t v = vector; v < vector + own.vectors; ++v)
          kernels.pack(samples + v * lanes * pose_size, count - v * lanes, pose_size,
                       own.first_child * dims.child_dim, own.last_child * dims.child_dim,
                       packed.get() + v * pose_size * lanes);
      own.poses += vector * pose_size * lanes;
      own.agreed += vector * stride;
      if (own.dsums) own.dsums += vector * stride;
      own.partial = partial.get() + (part * vectors + vector) * stride;
      if (own.coefficients) own.coefficients += vector * own.vector_stride;
      Buffer scratch(kernels.route_scratch(own));
      own.scratch = scratch.get();
      kernel(own);
      if (left[group].fetch_sub(1) == 1)
        for (int64_t v = vector; v < vector + own.vectors; ++v) finish(v);
    });
    is_packed = true;
  }

  // sum = the partial sums of a vector, added in the order of the ranges.
  void AddRanges(int64_t vector, float* sum) const {
    std::memcpy(sum, partial.get() + vector * stride, components * lanes * sizeof(float));
    for (int64_t part = 1; part < ranges; ++part) {
      const float* add = partial.get() + (part * vectors + vector) * stride;
      for (int64_t index = 0; index < components * lanes; ++index) sum[index] += add[index];
    }
  }

  DynamicPass Pass(const float* weights, const float* bias) const {
    DynamicPass pass = {};
    pass.children = dims.children;
    pass.parents = dims.parents;
    pass.child_dim = dims.child_dim;
    pass.parent_dim = dims.parent_dim;
    pass.poses = packed.get();
    pass.weights = weights;
    pass.bias = bias;
    pass.state_stride = stride;
    return pass;
  }

  // A vector of a state, from and to those of its samples [count, J, D].
  void PackState(int64_t vector, const float* values, float* state) const {
    kernels.pack(values + vector * lanes * components, count - vector * lanes, components, 0, components,
                 state + vector * stride);
  }
  void UnpackState(int64_t vector, const float* state, float* values) const {
    Unpack(state, 0, count, components, lanes, stride, vector, values);
  }

  // Calls body(sums, other) with the D components of each sample of a vector and parent; `lanes` floats apart.
  template <class Body>
  void ForParents(float* sums, float* other, const Body& body) const {
    for (int64_t parent = 0; parent < dims.parents; ++parent)
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t at = parent * dims.parent_dim * lanes + lane;
        body(sums + at, other + at);
      }
  }

  const CpuKernels& kernels;
  const DynamicDims& dims;
  const int64_t count;
  const Executor& executor;
  const int64_t lanes, vectors, groups, range, ranges, components, stride, pose_size;
  const float* const samples;  // poses [count, I, K]
  const Buffer packed;         // the same, [vector][I, K][lane]
  bool is_packed = false;
  Buffer partial;              // [range][vector][stride]
  std::vector<Buffer> states;  // each [vector][stride]
};

// |s| / (1 + |s|^2), and the length |s|, of components `step` apart.
float SquashFactor(const float* sums, int64_t size, int64_t step, float* length) {
  float squared = 0.0f;
  for (int64_t d = 0; d < size; ++d) squared += sums[d * step] * sums[d * step];
  *length = std::sqrt(squared);
  return *length / (1.0f + squared);
}

// to += squash(sums), for every sample of a vector and parent.
void AddSquashed(const Block& block, float* sums, float* to) {
  const int64_t size = block.dims.parent_dim, step = block.lanes;
  block.ForParents(sums, to, [&](const float* s, float* v) {
    float length;
    const float factor = SquashFactor(s, size, step, &length);
    for (int64_t d = 0; d < size; ++d) v[d * step] += factor * s[d * step];
  });
}

// The gradient of squash: dvalues becomes scale * (factor * dvalues + factor' / |s| * (s . dvalues) * s).
void SquashGradient(const Block& block, float* sums, float* dvalues, float scale) {
  const int64_t size = block.dims.parent_dim, step = block.lanes;
  block.ForParents(sums, dvalues, [&](const float* s, float* dv) {
    float length, dot = 0.0f;
    const float factor = SquashFactor(s, size, step, &length);
    for (int64_t d = 0; d < size; ++d) dot += s[d * step] * dv[d * step];
    const float root = 1.0f + length * length;
    const float slope = length > 0.0f ? (1.0f - length * length) / (root * root) * (dot / length) : 0.0f;
    for (int64_t d = 0; d < size; ++d) dv[d * step] = scale * (factor * dv[d * step] + slope * s[d * step]);
  });
}

// States [vector][stride] as DynamicScatter wants them.
Buffer GatherStates(const Block& block, const std::vector<const float*>& states) {
  const int64_t size = block.dims.parent_dim, padded = Ceil(size, block.lanes) * block.lanes;
  Buffer gathered(block.dims.parents * block.count * states.size() * padded);
  float* to = gathered.get();
  for (int64_t parent = 0; parent < block.dims.parents; ++parent)
    for (int64_t sample = 0; sample < block.count; ++sample)
      for (const float* state : states) {
        const float* from = state + sample / block.lanes * block.stride + parent * size * block.lanes +
                            sample % block.lanes;
        for (int64_t d = 0; d < padded; ++d) *to++ = d < size ? from[d * block.lanes] : 0.0f;
      }
  return gathered;
}

}  // namespace

void DynamicForward(const DynamicDims& dims, const float* poses, const float* weights, const float* bias,
                    float* outputs, float* sums, const Executor& executor) {
  if (dims.batch == 0) return;
  Block block(dims, 0, dims.batch, poses, executor);
  float *agreed = block.NewState(), *total = block.NewState();
  DynamicPass pass = block.Pass(weights, bias);
  pass.agreed = agreed;
  for (int t = 0; t < dims.iterations; ++t) {
    const bool uniform = t == 0 && !bias, last = t == dims.iterations - 1;
    block.Run(uniform ? block.kernels.sum_votes : block.kernels.route, pass, [&](int64_t vector) {
      float *sum = total + vector * block.stride, *outcome = agreed + vector * block.stride;
      block.AddRanges(vector, sum);
      if (uniform) {
        const float coupling = 1.0f / static_cast<float>(dims.parents);
        for (int64_t index = 0; index < block.stride; ++index) sum[index] *= coupling;
      }
      block.UnpackState(vector, total, sums + t * dims.batch * block.components);
      if (last) std::memset(outcome, 0, block.stride * sizeof(float));
      AddSquashed(block, sum, outcome);
      if (last) block.UnpackState(vector, agreed, outputs);
    });
  }
}

void DynamicBackward(const DynamicDims& dims, const float* poses, const float* weights, const float* bias,
                     const float* sums, const float* doutputs, float* dposes, float* dweights, float* dbias,
                     const Executor& executor) {
  const int64_t pairs = dims.children * dims.parents, steps = dims.iterations;
  if (dims.batch == 0) {
    std::memset(dweights, 0, pairs * dims.child_dim * dims.parent_dim * sizeof(float));
    if (dbias) std::memset(dbias, 0, pairs * sizeof(float));
    return;
  }
  const int64_t unit = Kernels().lanes * Kernels().vectors_at_once;
  // The first iteration has coefficients only if a bias makes its coupling depend on the pair.
  const int64_t start = bias ? 0 : 1;
  const int64_t cached = kCachedFloats / std::max<int64_t>(1, 2 * (steps - start) * pairs) / unit * unit;
  const int64_t most = std::clamp(cached, unit, kMostSamples);
  const int64_t at_once = Ceil(Ceil(dims.batch, Ceil(dims.batch, most)), unit) * unit;  // blocks of one size
  for (int64_t first = 0; first < dims.batch; first += at_once) {
    Block block(dims, first, std::min(at_once, dims.batch - first), poses, executor);
    DynamicPass whole = block.Pass(weights, bias);
    whole.pair_stride = 2 * (steps - start) * block.lanes;
    whole.vector_stride = dims.parents * kChildrenTogether * whole.pair_stride;
    whole.together_stride = block.vectors * whole.vector_stride;
    const Buffer coefficients(Ceil(dims.children, kChildrenTogether) * whole.together_stride);

    std::vector<float*> states(steps), agreed(steps), dsums(steps);
    for (int64_t t = 0; t < steps; ++t)
      for (auto* state : {&states, &agreed, &dsums}) (*state)[t] = block.NewState();
    float *dagreed = block.NewState(), *total = block.NewState();
    const size_t bytes = block.stride * sizeof(float);  // of a vector of a state

    // What v_t passes on to sums_t. v_t is in the output (t = R) or in agreed of every later iteration.
    const auto begin = [&](int64_t t, int64_t vector) {
      const int64_t at = vector * block.stride;
      if (t == steps - 1)
        block.PackState(vector, doutputs + first * block.components, dsums[t]);
      else
        std::memcpy(dsums[t] + at, dagreed + at, bytes);
      const bool uniform = t == 0 && !bias;
      SquashGradient(block, states[t] + at, dsums[t] + at, uniform ? 1.0f / static_cast<float>(dims.parents) : 1.0f);
    };
    ParallelFor(executor, block.vectors, [&](int64_t vector) {
      // What forward knew: sums_t, and agreed_t = v_1 + ... + v_{t-1}.
      const int64_t at = vector * block.stride;
      for (int64_t t = 0; t < steps; ++t) {
        block.PackState(vector, sums + (t * dims.batch + first) * block.components, states[t]);
        if (t == 0) continue;
        std::memcpy(agreed[t] + at, agreed[t - 1] + at, bytes);
        AddSquashed(block, states[t - 1] + at, agreed[t] + at);
      }
      begin(steps - 1, vector);
    });
    for (int64_t t = steps - 1; t >= start; --t) {
      DynamicPass pass = whole;
      pass.agreed = agreed[t];
      pass.dsums = dsums[t];
      pass.coefficients = coefficients.get() + 2 * (t - start) * block.lanes;
      block.Run(block.kernels.agree, pass, [&](int64_t vector) {
        if (t == 0) return;
        const int64_t at = vector * block.stride;
        block.AddRanges(vector, total + at);
        for (int64_t index = at; index < at + block.stride; ++index) dagreed[index] += total[index];
        begin(t - 1, vector);
      });
    }

    // The states that the last pass adds up.
    std::vector<const float*> added;
    if (!bias) added.push_back(dsums[0]);
    for (int64_t t = start; t < steps; ++t) {
      added.push_back(dsums[t]);
      added.push_back(agreed[t]);
    }
    const Buffer gathered = GatherStates(block, added);

    ParallelFor(executor, Ceil(dims.children, kScattered), [&](int64_t part) {
      DynamicScatter scatter = {};
      scatter.pass = whole;
      scatter.pass.poses = poses + first * dims.children * dims.child_dim;
      scatter.pass.first_child = part * kScattered;
      scatter.pass.last_child = std::min(dims.children, scatter.pass.first_child + kScattered);
      scatter.pass.coefficients = coefficients.get();
      scatter.samples = block.count;
      scatter.states = gathered.get();
      scatter.state_count = static_cast<int64_t>(added.size());
      scatter.terms = 2 * (steps - start);
      scatter.accumulate = first > 0;
      scatter.dposes = dposes + first * dims.children * dims.child_dim;
      scatter.dweights = dweights;
      scatter.dbias = dbias;
      Buffer scratch(block.kernels.scatter_scratch(scatter));
      scatter.pass.scratch = scratch.get();
      block.kernels.scatter(scatter);
    });
  }
}

}  // namespace tfinv
