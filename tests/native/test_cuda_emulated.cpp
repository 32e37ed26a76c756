// The CUDA kernels of custom_ops/core on the host emulator: parity with the reference, extremes, barriers.
//
//   test_cuda_emulated [NAME]     runs every test, or those whose name contains NAME; exit status 1 if one
//   failed
#include <array>
#include <ctime>
#include <limits>

#include "cuda_emulator.h"
#include "run_cpu.h"
// The kernels themselves.
#include "dynamic_cuda.cu"
#include "em_cuda.cu"

namespace tfinv {
namespace testing {
namespace {

using cuda_emulator::Order;

constexpr EmVariant kVariants[] = {EmVariant::kHinton2018, EmVariant::kArticle};

// Device memory of exactly the size that is asked for.
struct DeviceMemory {
  explicit DeviceMemory(size_t bytes) : buffer(bytes / sizeof(float), 0) {}
  Buffer buffer;
};

void ExpectNoError(const std::string& name, const char* error) {
  if (error) Fail("%s: %s", name.c_str(), error);
}

// `offset` floats away from an alignment of 64 bytes: 0 runs the kernels of fixed sizes, 1 those of any size.
DynamicCase::Results RunCuda(const DynamicCase& problem, size_t offset) {
  const DynamicDims& dims = problem.dims;
  const auto& in = problem.inputs;
  const size_t size = dims.batch * dims.parents * dims.parent_dim;
  DynamicCase::Results out;
  Arena forward(problem.Name() + " forward", offset), backward(problem.Name() + " backward", offset);
  {
    DeviceMemory workspace(DynamicCudaWorkspaceBytes(dims, false));
    ExpectNoError(
        problem.Name(),
        DynamicForwardCuda(dims, forward.In(in.poses), forward.In(in.weights), forward.InOrNull(in.bias),
                           forward.Out(out.outputs, size), forward.Out(out.sums, dims.iterations * size),
                           workspace.buffer.data(), nullptr));
    if (!workspace.buffer.GuardsIntact()) Fail("%s: wrote around the workspace", problem.Name().c_str());
  }
  forward.Finish();
  DeviceMemory workspace(DynamicCudaWorkspaceBytes(dims, true));
  ExpectNoError(problem.Name(),
                DynamicBackwardCuda(
                    dims, backward.In(in.poses), backward.In(in.weights), backward.InOrNull(in.bias),
                    backward.In(out.sums), backward.In(in.doutputs),
                    backward.Out(out.dposes, in.poses.size()), backward.Out(out.dweights, in.weights.size()),
                    backward.OutOrNull(out.dbias, in.bias.size()), workspace.buffer.data(), nullptr));
  if (!workspace.buffer.GuardsIntact()) Fail("%s: wrote around the workspace", problem.Name().c_str());
  backward.Finish();
  return out;
}

EmCase::Results RunCuda(const EmCase& problem, size_t offset) {
  const EmDims dims = problem.Dims();
  const auto& in = problem.inputs;
  const size_t rows = dims.batch * dims.parents, size = dims.pose_size * dims.pose_size;
  EmCase::Results out;
  Arena forward(problem.Name() + " forward", offset), backward(problem.Name() + " backward", offset);
  {
    DeviceMemory workspace(EmCudaWorkspaceBytes(dims, false));
    ExpectNoError(
        problem.Name(),
        EmForwardCuda(dims, forward.In(in.poses), forward.In(in.activations), forward.In(in.weights),
                      forward.In(in.beta_u), forward.In(in.beta_a), forward.InOrNull(in.bias),
                      forward.Out(out.outputs, rows * size), forward.Out(out.output_activations, rows),
                      forward.Out(out.statistics, dims.iterations * rows * (2 * size + 1)),
                      workspace.buffer.data(), nullptr));
    if (!workspace.buffer.GuardsIntact()) Fail("%s: wrote around the workspace", problem.Name().c_str());
  }
  forward.Finish();
  DeviceMemory workspace(EmCudaWorkspaceBytes(dims, true));
  ExpectNoError(
      problem.Name(),
      EmBackwardCuda(dims, backward.In(in.poses), backward.In(in.activations), backward.In(in.weights),
                     backward.In(in.beta_u), backward.In(in.beta_a), backward.InOrNull(in.bias),
                     backward.In(out.statistics), backward.In(in.doutputs),
                     backward.In(in.doutput_activations), backward.Out(out.dposes, in.poses.size()),
                     backward.Out(out.dactivations, in.activations.size()),
                     backward.Out(out.dweights, in.weights.size()),
                     backward.Out(out.dbeta_u, in.beta_u.size()), backward.Out(out.dbeta_a, in.beta_a.size()),
                     backward.OutOrNull(out.dbias, in.bias.size()), workspace.buffer.data(), nullptr));
  if (!workspace.buffer.GuardsIntact()) Fail("%s: wrote around the workspace", problem.Name().c_str());
  backward.Finish();
  return out;
}

// Sets the limits that divide the work, and puts them back.
struct Limits {
  Limits(int64_t target, int64_t blocks, int64_t bytes) {
    cuda::kTargetBlocks = target, cuda::kMaxBlocks = blocks, cuda::kPartialBytes = bytes;
    cuda::kMultiprocessors = cuda::CeilDiv(target, 4);
  }
  ~Limits() {
    cuda::kTargetBlocks = 576, cuda::kMaxBlocks = 1 << 20, cuda::kPartialBytes = 64 << 20;
    cuda::kMultiprocessors = 132;
  }
};

EmDims EmOf(int64_t batch, int64_t children, int64_t parents, int64_t pose_size, int iterations,
            EmVariant variant, float floor = 1e-2f) {
  return {batch, children, parents, pose_size, iterations, variant, floor, nullptr};
}

const DynamicDims kDynamic[] = {
    {3, 5, 10, 8, 16, 3}, {13, 9, 8, 8, 16, 2}, {1, 1, 1, 8, 16, 1},  {5, 3, 32, 8, 16, 3},
    {2, 3, 33, 8, 16, 2}, {3, 5, 70, 8, 16, 3}, {40, 2, 1, 8, 16, 2}, {1, 1, 1, 1, 1, 1},
    {3, 7, 5, 3, 7, 3},   {2, 3, 40, 5, 2, 2},  {17, 2, 3, 9, 20, 5}, {2, 2, 32, 2, 129, 2},
    {0, 3, 2, 8, 16, 2},  {7, 1, 2, 129, 3, 1}, {1, 6, 31, 1, 1, 3},  {35, 9, 10, 8, 16, 3},
    {16, 2, 10, 8, 16, 1}, {150, 5, 10, 8, 16, 2},
};
const int kEm[][5] = {
    // B, I, J, P, R
    {3, 7, 16, 4, 2}, {5, 3, 10, 4, 3}, {1, 1, 1, 4, 1},  {2, 5, 32, 4, 2}, {2, 3, 33, 4, 3},
    {1, 3, 70, 4, 2}, {9, 4, 2, 4, 5},  {3, 5, 3, 1, 2},  {2, 4, 40, 2, 2}, {5, 6, 4, 3, 3},
    {2, 2, 5, 5, 2},  {0, 2, 3, 4, 2},  {1, 2, 32, 9, 2}, {40, 2, 5, 4, 2},
    // Several stages of weights and chunks of children; more iterations than states of a launch.
    {2, 40, 17, 4, 2}, {3, 3, 6, 4, 9},
};

int every = 1;  // only each so many of the problems, to save time under a sanitizer

// visit(problem, n) for the problems, counted from n = 0.
template <class Visit>
void EachCase(const Visit& visit) {
  int n = 0;
  for (const DynamicDims& dims : kDynamic)
    for (bool bias : {false, true})
      if (n++ % every == 0) visit(MakeDynamic(dims, bias, 1), n);
  for (const auto& [batch, children, parents, pose_size, iterations] : kEm)
    for (EmVariant variant : kVariants) {
      const bool bias = (batch + children) % 2 == (variant == EmVariant::kArticle);
      EmCase problem = MakeEm(EmOf(batch, children, parents, pose_size, iterations, variant), bias, 2);
      for (float& warm : problem.temperatures) warm *= 20.0f;  // so that beta_u and beta_a matter
      if (n++ % every == 0) visit(problem, n);
    }
}

void Parity() {
  EachCase([](const auto& problem, int) {
    for (size_t offset : {0, 1}) Compare(problem, RunCuda(problem, offset));
  });
  // Cards without tensor cores for TF32.
  cuda::tensor_cores = false;
  for (const DynamicDims& dims : kDynamic) {
    if (dims.parents != cuda::kTileParents) continue;
    const DynamicCase problem = MakeDynamic(dims, true, 1);
    Compare(problem, RunCuda(problem, 0));
  }
  cuda::tensor_cores = true;
}

// The same kernels with little work for a block, then much: other splits, chunks and loops.
void DividedWork() {
  EachCase([](const auto& problem, int n) {
    const std::array<int64_t, 3> all[] = {{1, 1, 1}, {4, 3, 1 << 20}, {1, 2, 1 << 12}};
    const auto [target, blocks, bytes] = all[n / every % 3];
    const Limits limits(target, blocks, bytes);
    Compare(problem, RunCuda(problem, 0));
  });
}

// Threads that take their turns in another order compute the same: no barrier is missing.
void Orders() {
  EachCase([](const auto& problem, int n) {
    const Limits limits(n / every % 2 ? 576 : 4, 3, 1 << 20);  // few blocks, so that each has several rounds
    const auto expected = RunCuda(problem, 0);
    for (Order order : {Order::kBackward, Order::kShuffled}) {
      cuda_emulator::machine.order = order;
      ExpectSame(problem, RunCuda(problem, 0), expected, "the order of the threads");
    }
    cuda_emulator::machine.order = Order::kForward;
  });
}

// The kernels of fixed and of any sizes; the widths at which a parent has one lane, several, or none of its own.
void NotANumber() {
  const auto run = [](const auto& problem) { return RunCuda(problem, 0); };
  for (bool bias : {false, true}) {
    for (int parents : {10, 33}) CheckNotANumber(MakeDynamic({2, 5, parents, 8, 16, 2}, bias, 3), run);
    CheckNotANumber(MakeDynamic({2, 5, 3, 5, 7, 2}, bias, 3), run);
    for (EmVariant variant : kVariants)
      for (auto [parents, pose_size] : {std::array{5, 4}, {33, 4}, {5, 3}})
        CheckNotANumber(MakeEm(EmOf(2, 5, parents, pose_size, 2, variant), bias, 3), run);
  }
}

// Each thread hands its number to a neighbour through shared memory.
void HandOver(bool barrier, int* received) {
  TFINV_SHARED(shared);
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (barrier) __syncthreads();
  const float value = shared[(threadIdx.x + 1) % blockDim.x];
  received[threadIdx.x] = std::isnan(value) ? -1 : static_cast<int>(value);
}

// What the emulator is for: without the barrier some of the numbers are missing, in every order.
void MissingBarrier() {
  for (Order order : {Order::kForward, Order::kBackward, Order::kShuffled}) {
    cuda_emulator::machine.order = order;
    for (bool barrier : {false, true}) {
      std::vector<int> received(64);
      TFINV_LAUNCH(HandOver, 1, 64, 64 * sizeof(float), nullptr, barrier, received.data());
      const bool missing = std::find(received.begin(), received.end(), -1) != received.end();
      if (missing == barrier) Fail("a missing barrier was%s found", barrier ? " falsely" : " not");
    }
  }
  cuda_emulator::machine.order = Order::kForward;
}

// Votes of 0, tiny and huge ones, agreeing ones, and activations of exactly 0 and 1.
void Extremes() {
  for (double scale : {0.0, 1e-3, 30.0}) {
    for (int parents : {10, 33})
      Compare(MakeDynamic({2, 9, parents, 8, 16, 3}, true, 3, scale),
              RunCuda(MakeDynamic({2, 9, parents, 8, 16, 3}, true, 3, scale), 0));
  }
  for (EmVariant variant : kVariants)
    for (double scale : {0.0, 1e-3, 1e3})
      for (int parents : {5, 33}) {
        EmCase problem = MakeEm(EmOf(2, 9, parents, 4, 3, variant), false, 3, scale);
        problem.inputs.activations[0] = 0.0f;
        problem.inputs.activations[1] = 1.0f;
        const auto results = RunCuda(problem, 0);
        for (const auto& [name, values] : results.Tensors(problem.Dims()))
          if (!Finite(values))
            Fail("%s at scale %g: %s is not finite", problem.Name().c_str(), scale, name.c_str());
        if (scale < 1.0) Compare(problem, results);
      }
  // Votes that agree exactly have no variance but the floor.
  EmCase agreeing = MakeEm(EmOf(2, 6, 4, 4, 3, EmVariant::kHinton2018, 1e-4f), false, 4);
  for (size_t n = 0; n < agreeing.inputs.poses.size(); ++n)
    agreeing.inputs.poses[n] = agreeing.inputs.poses[n % 16];
  for (size_t n = 0; n < agreeing.inputs.weights.size(); ++n)
    agreeing.inputs.weights[n] = agreeing.inputs.weights[n % 64];
  Compare(agreeing, RunCuda(agreeing, 0));
  // Neither have these, which lie far from 0 in units of that floor.
  EmCase far = MakeEm(EmOf(2, 6, 4, 4, 3, EmVariant::kHinton2018, 1e-6f), false, 4);
  for (size_t n = 0; n < far.inputs.poses.size(); ++n)
    far.inputs.poses[n] = 10.0f * agreeing.inputs.poses[n % 16];
  far.inputs.weights = agreeing.inputs.weights;
  const auto own = RunCuda(far, 0).dposes, any = RunCuda(far, 1).dposes;
  float largest = 0.0f, difference = 0.0f;
  for (size_t n = 0; n < any.size(); ++n) {
    largest = std::max(largest, std::fabs(any[n]));
    difference = std::max(difference, std::fabs(own[n] - any[n]));
  }
  if (!(difference <= 1e-4f * largest)) Fail("dposes of votes that agree: %g of %g", difference, largest);
  // A bias of the lowest number is a mask, and so is -inf.
  for (float mask : {-std::numeric_limits<float>::max(), -std::numeric_limits<float>::infinity()})
    for (auto [parents, pose_size] : {std::array{4, 4}, {4, 3}, {33, 4}, {33, 3}}) {
      EmCase masked = MakeEm(EmOf(2, 6, parents, pose_size, 2, EmVariant::kHinton2018), true, 5);
      masked.inputs.bias[2] = mask;  // of the first child, with which sums begin
      const auto results = RunCuda(masked, 0);
      for (const auto& [name, values] : results.Tensors(masked.Dims()))
        if (!Finite(values)) Fail("%s with a mask: %s is not finite", masked.Name().c_str(), name.c_str());
    }
}

// Sums over many children and many samples do not lean to 0: all terms have one sign.
void LongSums() {
  const Limits limits(1, 64, 1);  // no splits
  for (const DynamicDims& dims : {DynamicDims{1, 1000, 10, 8, 16, 1}, DynamicDims{1000, 1, 10, 8, 16, 1}}) {
    DynamicCase problem = MakeDynamic(dims, false, 6);
    for (auto* values : {&problem.inputs.poses, &problem.inputs.weights, &problem.inputs.doutputs})
      for (float& value : *values) value = std::fabs(value);
    Compare(problem, RunCuda(problem, 0));
  }
}

void Refusals() {
  const DynamicDims huge = {1, 1, int64_t{1} << 40, 1, 1, 1}, empty = {1, 0, 1, 1, 1, 1};
  for (const DynamicDims& dims : {huge, empty})
    if (!DynamicForwardCuda(dims, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr))
      Fail("sizes that are not supported were not refused");
  // The emulator itself refuses what a device would.
  cuda_emulator::Launch(1, 32, 49 * 1024, [] {});
  if (cudaGetLastError() == cudaSuccess) Fail("too much shared memory was granted");
}

struct Test {
  const char* name;
  void (*run)();
};
constexpr Test kTests[] = {
    {"parity", Parity},          {"divided_work", DividedWork}, {"orders", Orders},
    {"extremes", Extremes},      {"not_a_number", NotANumber},  {"long_sums", LongSums},
    {"refusals", Refusals},      {"missing_barrier", MissingBarrier}};

}  // namespace

int Main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "";
  every = argc > 2 ? std::max(1, std::atoi(argv[2])) : 1;
  int found = 0;
  for (const Test& test : kTests) {
    if (std::string(test.name).find(wanted) == std::string::npos) continue;
    ++found;
    const auto begin = std::clock();
    test.run();
    std::printf("%s: %.1f s\n", test.name, double(std::clock() - begin) / CLOCKS_PER_SEC);
    std::fflush(stdout);
  }
  if (found == 0) Fail("no test is named %s", wanted.c_str());
  std::printf("launches=%lld blocks=%lld shared=%zu\n",
              static_cast<long long>(cuda_emulator::machine.launches),
              static_cast<long long>(cuda_emulator::machine.blocks), cuda_emulator::machine.largest_shared);
  return Report("test_cuda_emulated", "emulator");
}

}  // namespace testing
}  // namespace tfinv

int main(int argc, char** argv) { return tfinv::testing::Main(argc, argv); }
