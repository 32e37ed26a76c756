// EM routing on the CPU. A vector of samples goes through all iterations on its own: the tasks never wait for
// each other. Gradients that are summed over the samples go to one of a fixed number of shares, which are
// added in order, so that results do not depend on the threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "cpu_kernels.h"
#include "routing.h"

namespace tfinv {
namespace {

constexpr int64_t kShares = 32;                      // at most; 4 at least, if there are as many vectors
constexpr int64_t kShareFloats = int64_t{1} << 25;   // of all shares: 128 MiB

// Where the arrays of a task lie in its scratch.
struct Layout {
  Layout(const EmDims& dims, int64_t lanes, bool backward)
      : size(dims.pose_size * dims.pose_size), pose_floats(dims.children * size),
        statistics_floats(dims.parents * (2 * size + 1)), parent_floats(dims.parents * size) {
    int64_t used = 0;
    auto take = [&](int64_t floats) {
      const int64_t at = used;
      used += floats * lanes;
      return at;
    };
    poses = take(pose_floats);
    activations = take(dims.children);
    statistics = take(dims.iterations * statistics_floats);
    output_activations = take(dims.parents);
    if (backward) {
      doutputs = take(parent_floats);
      dposes = take(pose_floats);
      dactivations = take(dims.children);
    }
    scratch = used;
  }
  int64_t size, pose_floats, statistics_floats, parent_floats;
  int64_t poses, activations, statistics, output_activations, doutputs = 0, dposes = 0, dactivations = 0, scratch;
};

// log softmax of bias over the parents; the same for every sample.
std::vector<float> FirstLogR(const EmDims& dims, const float* bias) {
  std::vector<float> logr(dims.children * dims.parents, -std::log(static_cast<float>(dims.parents)));
  for (int64_t i = 0; bias && i < dims.children; ++i) {
    const float* row = bias + i * dims.parents;
    const float largest = *std::max_element(row, row + dims.parents);
    float total = 0.0f;
    for (int64_t j = 0; j < dims.parents; ++j) total += std::exp(row[j] - largest);
    for (int64_t j = 0; j < dims.parents; ++j) logr[i * dims.parents + j] = row[j] - largest - std::log(total);
  }
  return logr;
}

EmBlock MakeBlock(const EmDims& dims, const float* weights, const float* beta_u, const float* beta_a,
                  const float* first_logr) {
  EmBlock block = {};
  block.children = dims.children;
  block.parents = dims.parents;
  block.pose_size = dims.pose_size;
  block.iterations = dims.iterations;
  block.hinton2018 = dims.variant == EmVariant::kHinton2018;
  block.variance_floor = dims.variance_floor;
  block.activation_floor = kActivationFloor;
  block.inverse_temperatures = dims.inverse_temperatures;
  block.weights = weights;
  block.beta_u = beta_u;
  block.beta_a = beta_a;
  block.first_logr = first_logr;
  return block;
}

}  // namespace

void EmForward(const EmDims& dims, const float* poses, const float* activations, const float* weights,
               const float* beta_u, const float* beta_a, const float* bias, float* outputs,
               float* output_activations, float* statistics, const Executor& executor) {
  const CpuKernels& kernels = Kernels();
  const int64_t lanes = kernels.lanes, vectors = (dims.batch + lanes - 1) / lanes;
  const std::vector<float> first_logr = FirstLogR(dims, bias);
  const Layout at(dims, lanes, false);
  ParallelFor(executor, vectors, [&](int64_t vector) {
    EmBlock block = MakeBlock(dims, weights, beta_u, beta_a, first_logr.data());
    const Buffer buffer(at.scratch + kernels.em_forward_scratch(block));
    float* memory = buffer.get();
    const int64_t first = vector * lanes, count = std::min(lanes, dims.batch - first);
    const auto pack = [&](const float* values, int64_t row, int64_t size, float* to) {
      kernels.pack(values + row * size, count, size, 0, size, to);
    };
    pack(poses, first, at.pose_floats, memory + at.poses);
    pack(activations, first, dims.children, memory + at.activations);
    block.poses = memory + at.poses;
    block.activations = memory + at.activations;
    block.statistics = memory + at.statistics;
    block.output_activations = memory + at.output_activations;
    block.scratch = memory + at.scratch;
    kernels.em_forward(block);
    for (int t = 0; t < dims.iterations; ++t)
      Unpack(block.statistics + t * at.statistics_floats * lanes, t * dims.batch + first, count,
             at.statistics_floats, lanes, 0, 0, statistics);
    const float* means = statistics + (dims.iterations - 1) * dims.batch * at.statistics_floats;
    for (int64_t row = first * dims.parents; row < (first + count) * dims.parents; ++row)
      std::memcpy(outputs + row * at.size, means + row * (2 * at.size + 1), at.size * sizeof(float));
    Unpack(block.output_activations, first, count, dims.parents, lanes, 0, 0, output_activations);
  });
}

void EmBackward(const EmDims& dims, const float* poses, const float* activations, const float* weights,
                const float* beta_u, const float* beta_a, const float* bias, const float* statistics,
                const float* doutputs, const float* doutput_activations, float* dposes,
                float* dactivations, float* dweights, float* dbeta_u, float* dbeta_a, float* dbias,
                const Executor& executor) {
  const CpuKernels& kernels = Kernels();
  const int64_t lanes = kernels.lanes, vectors = (dims.batch + lanes - 1) / lanes;
  const int64_t pairs = dims.children * dims.parents;
  const std::vector<float> first_logr = FirstLogR(dims, bias);
  const Layout at(dims, lanes, true);

  // A share: dweights, dbeta_u, dbeta_a and dbias, one after the other.
  const int64_t weight_floats = pairs * at.size, bias_floats = bias ? pairs : 0;
  const int64_t share_floats = weight_floats + 2 * dims.parents + bias_floats;
  const int64_t affordable = std::clamp<int64_t>(kShareFloats / share_floats, 4, kShares);
  const int64_t shares = std::max<int64_t>(1, std::min(vectors, affordable));
  const Buffer shared(shares * share_floats);

  ParallelFor(executor, shares, [&](int64_t share) {
    float* sums = shared.get() + share * share_floats;
    std::memset(sums, 0, share_floats * sizeof(float));
    EmBlock block = MakeBlock(dims, weights, beta_u, beta_a, first_logr.data());
    const Buffer buffer(at.scratch + kernels.em_backward_scratch(block));
    float* memory = buffer.get();
    block.poses = memory + at.poses;
    block.activations = memory + at.activations;
    block.statistics = memory + at.statistics;
    block.doutputs = memory + at.doutputs;
    block.doutput_activations = memory + at.output_activations;
    block.dposes = memory + at.dposes;
    block.dactivations = memory + at.dactivations;
    block.dweights = sums;
    block.dbeta_u = sums + weight_floats;
    block.dbeta_a = block.dbeta_u + dims.parents;
    block.dbias = bias ? block.dbeta_a + dims.parents : nullptr;
    block.scratch = memory + at.scratch;
    for (int64_t vector = share * vectors / shares; vector < (share + 1) * vectors / shares; ++vector) {
      const int64_t first = vector * lanes, count = std::min(lanes, dims.batch - first);
      const auto pack = [&](const float* values, int64_t row, int64_t size, float* to) {
        kernels.pack(values + row * size, count, size, 0, size, to);
      };
      pack(poses, first, at.pose_floats, memory + at.poses);
      pack(activations, first, dims.children, memory + at.activations);
      for (int t = 0; t < dims.iterations; ++t)
        pack(statistics, t * dims.batch + first, at.statistics_floats,
             memory + at.statistics + t * at.statistics_floats * lanes);
      // Lanes past the end are samples of no weight: a variance of 0 would make their gradients NaN.
      for (int64_t row = 0; count < lanes && row < dims.iterations * dims.parents; ++row)
        for (int64_t h = 0; h < at.size; ++h)
          for (int64_t lane = count; lane < lanes; ++lane)
            block.statistics[(row * (2 * at.size + 1) + at.size + h) * lanes + lane] = 1.0f;
      pack(doutputs, first, at.parent_floats, memory + at.doutputs);
      pack(doutput_activations, first, dims.parents, memory + at.output_activations);
      kernels.em_backward(block);
      Unpack(block.dposes, first, count, at.pose_floats, lanes, 0, 0, dposes);
      Unpack(block.dactivations, first, count, dims.children, lanes, 0, 0, dactivations);
    }
  });

  auto add_shares = [&](int64_t offset, int64_t count, float* total) {
    constexpr int64_t kPiece = 4096;
    ParallelFor(executor, (count + kPiece - 1) / kPiece, [&](int64_t piece) {
      const int64_t begin = piece * kPiece, end = std::min(count, begin + kPiece);
      std::memcpy(total + begin, shared.get() + offset + begin, (end - begin) * sizeof(float));
      for (int64_t share = 1; share < shares; ++share) {
        const float* add = shared.get() + share * share_floats + offset;
        for (int64_t index = begin; index < end; ++index) total[index] += add[index];
      }
    });
  };
  add_shares(0, weight_floats, dweights);
  add_shares(weight_floats, dims.parents, dbeta_u);
  add_shares(weight_floats + dims.parents, dims.parents, dbeta_a);
  if (bias) add_shares(weight_floats + 2 * dims.parents, pairs, dbias);
}

}  // namespace tfinv
