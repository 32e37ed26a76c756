// Tests of the CPU half of custom_ops/core, without a framework.
//
//   test_cpu [NAME]     runs every test, or those whose name contains NAME; exit status 1 if one failed
//
// The environment variable TFINV_ISA chooses the instruction set.
#include <array>
#include <atomic>
#include <new>

#include "run_cpu.h"

namespace tfinv {
namespace testing {
namespace {

constexpr EmVariant kVariants[] = {EmVariant::kHinton2018, EmVariant::kArticle};

EmDims EmOf(int64_t batch, int64_t children, int64_t parents, int64_t pose_size, int iterations,
            EmVariant variant, float floor = 1e-2f) {
  return {batch, children, parents, pose_size, iterations, variant, floor, nullptr};
}

template <typename Case>
void Check(const Case& problem, const Executor& executor = {}) {
  Compare(problem, Run(problem, executor));
}

// ---------------------------------------------------------------------------------------------------------
// The reference itself: its gradients are the slopes of its outputs.

double Dot(const std::vector<double>& first, const std::vector<double>& second) {
  double total = 0;
  for (size_t n = 0; n < first.size(); ++n) total += first[n] * second[n];
  return total;
}

using Gradients = std::vector<const std::vector<double>*>;

double Loss(const DynamicCase& problem, const reference::DynamicInputs<double>& in) {
  return Dot(in.doutputs, problem.Reference<double>(in).outputs);
}
double Loss(const EmCase& problem, const reference::EmInputs<double>& in) {
  const auto out = problem.Reference<double>(in);
  return Dot(in.doutputs, out.outputs) + Dot(in.doutput_activations, out.output_activations);
}
// In the order of the inputs.
Gradients GradientsOf(const reference::DynamicResults<double>& out) {
  return {&out.dposes, &out.dweights, &out.dbias};
}
Gradients GradientsOf(const reference::EmResults<double>& out) {
  return {&out.dposes, &out.dactivations, &out.dweights, &out.dbeta_u, &out.dbeta_a, &out.dbias};
}

// Central differences of fourth order: with steps of 1e-3 what is cut off and what is rounded are both below
// 1e-9 of the largest slope on these problems, but for variances near the floor; 1e-6 is asked.
template <typename Case>
void CheckReference(const Case& problem) {
  Random random(1);
  using Doubles = typename Case::template Inputs<double>;
  auto in = Converted<Doubles>(problem.inputs, 0.0, random);
  const auto results = problem.template Reference<double>(in);
  const Gradients gradients = GradientsOf(results);
  const double step = 2e-4;
  for (size_t n = 0; n < gradients.size(); ++n) {
    std::vector<double>& values = *in.Tensors()[n];
    std::vector<double> slopes;
    for (double& value : values) {
      const double before = value;
      const auto at = [&](double away) {
        value = before + away;
        return Loss(problem, in);
      };
      slopes.push_back((8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step));
      value = before;
    }
    const double error = Distance(slopes, *gradients[n]), largest = Largest(slopes);
    if (slopes.size() != gradients[n]->size() || !(error <= 1e-6 * largest + 1e-11))
      Fail("%s: gradient %zu of the reference is off by %.3g of %.3g", problem.Name().c_str(), n, error,
           largest);
    ++tally.compared;
  }
}

void ReferenceGradients() {
  const DynamicDims sizes[] = {{2, 3, 2, 3, 2, 1}, {2, 5, 3, 2, 4, 2}, {1, 4, 3, 3, 3, 3}, {3, 2, 4, 1, 2, 5},
                               {1, 1, 3, 2, 2, 3}, {2, 3, 1, 2, 2, 3}, {1, 1, 1, 1, 1, 4}};
  for (const DynamicDims& dims : sizes)
    for (bool bias : {false, true}) CheckReference(MakeDynamic(dims, bias, 1));
  for (EmVariant variant : kVariants)
    for (int iterations = 1; iterations <= 5; ++iterations)
      for (bool bias : {false, true})
        for (auto [children, parents, pose_size] : {std::array{4, 3, 2}, {3, 2, 3}, {1, 3, 1}, {5, 1, 2}}) {
          EmCase problem = MakeEm(EmOf(2, children, parents, pose_size, iterations, variant, 0.1f), bias, 2);
          for (float& warm : problem.temperatures) warm *= 20.0f;  // so that beta_u and beta_a matter
          for (float& value : problem.inputs.activations) value = 0.1f + 0.8f * value;
          CheckReference(problem);
          // Below the floor nothing may change; a difference quotient would step over the floor.
          problem.inputs.activations[0] = 1e-13f;
          Random random(1);
          const auto in = Converted<reference::EmInputs<double>>(problem.inputs, 0.0, random);
          if (problem.Reference<double>(in).dactivations[0] != 0.0) Fail("the floor has a slope");
        }
}

// ---------------------------------------------------------------------------------------------------------
// Known values.

// Four children whose votes are of length 2: the same for parent 0, orthogonal for parent 1.
void GoldenLengths() {
  const double expected[3][2] = {{.941176, .800000}, {.972757, .506085}, {.982091, .081250}};
  for (int iterations = 1; iterations <= 3; ++iterations) {
    DynamicCase problem = MakeDynamic({1, 4, 2, 1, 4, iterations}, false, 1);
    problem.inputs.poses.assign(4, 1.0f);
    problem.inputs.weights.assign(4 * 2 * 4, 0.0f);
    for (int i = 0; i < 4; ++i) {
      problem.inputs.weights[(i * 2 + 0) * 4 + 0] = 2.0f;
      problem.inputs.weights[(i * 2 + 1) * 4 + i] = 2.0f;
    }
    const auto results = Run(problem, {});
    for (int j = 0; j < 2; ++j) {
      double squared = 0;
      for (int d = 0; d < 4; ++d) squared += double(results.outputs[j * 4 + d]) * results.outputs[j * 4 + d];
      if (!(std::fabs(std::sqrt(squared) - expected[iterations - 1][j]) < 1.5e-6))
        Fail("golden r=%d parent %d: %.6f", iterations, j, std::sqrt(squared));
    }
    Compare(problem, results);
  }
}

// One scalar child of pose 3 and weight 2, by hand: the mean is its vote 6, the variance its floor.
void GoldenEm() {
  for (EmVariant variant : kVariants) {
    EmCase problem = MakeEm(EmOf(1, 1, 1, 1, 1, variant, 0.25f), false, 1);
    problem.inputs.poses = {3.0f};
    problem.inputs.weights = {2.0f};
    problem.inputs.activations = {0.5f};
    problem.inputs.beta_u = {0.75f};
    problem.inputs.beta_a = {1.5f};
    problem.temperatures = {2.0f};
    const auto results = Run(problem, {});
    // x = 2 (1.5 - 0.5 (0.75 + log(0.25) / 2)); a softmax over one parent is 1.
    const double x = 2.0 * (1.5 - 0.5 * (0.75 - std::log(2.0)));
    const double activation = variant == EmVariant::kArticle ? 1.0 : 1.0 / (1.0 + std::exp(-x));
    const double logmass = variant == EmVariant::kArticle ? 0.0 : std::log(0.5);
    if (Distance(results.outputs, std::vector<double>{6.0}) > 1e-6 ||
        Distance(results.output_activations, std::vector<double>{activation}) > 1e-6 ||
        Distance(results.statistics, std::vector<double>{6.0, 0.25, logmass}) > 1e-6)
      Fail("golden em: %g %g", double(results.outputs[0]), double(results.output_activations[0]));
    Compare(problem, results);
  }
}

// ---------------------------------------------------------------------------------------------------------
// Sizes.

void DynamicSizes() {
  const DynamicDims sizes[] = {
      {1, 1, 1, 1, 1, 1},    {1, 1, 1, 1, 1, 5},   {3, 7, 1, 3, 2, 3},   {1, 129, 7, 1, 1, 2},
      {7, 1, 5, 7, 7, 3},    {3, 7, 129, 2, 3, 3}, {129, 7, 3, 2, 5, 2}, {5, 129, 10, 8, 16, 3},
      {2, 33, 17, 5, 9, 4},  {3, 31, 2, 16, 32, 3}, {1, 7, 3, 129, 1, 2}, {2, 7, 3, 1, 129, 3},
      {9, 64, 8, 8, 16, 5},  {4, 65, 9, 7, 15, 3}, {3, 15, 4, 8, 8, 1},  {2, 40, 8, 8, 16, 2},
      {17, 16, 16, 8, 16, 1}, {1, 8, 2, 4, 4, 4},  {33, 9, 5, 6, 11, 3}, {1, 257, 3, 8, 16, 3},
      // Several children a task, and batches whose blocks of samples are no whole vectors of 4, 8 or 16.
      {37, 65, 2, 5, 7, 2},  {70, 97, 2, 3, 5, 3}, {100, 65, 2, 8, 16, 3}, {118, 64, 2, 4, 6, 3}};
  for (const DynamicDims& dims : sizes)
    for (bool bias : {false, true}) Check(MakeDynamic(dims, bias, 3));
}

void EmSizes() {
  const int sizes[][3] = {{1, 1, 1}, {3, 7, 1}, {2, 1, 7}, {7, 129, 3}, {2, 7, 129}, {5, 9, 16}, {33, 3, 2},
                          {1, 17, 8}};
  int iterations = 1;
  for (EmVariant variant : kVariants)
    for (bool bias : {false, true})
      for (int64_t pose_size = 1; pose_size <= 5; ++pose_size)
        for (const auto& [batch, children, parents] : sizes) {
          Check(MakeEm(EmOf(batch, children, parents, pose_size, iterations, variant), bias, 4));
          iterations = iterations % 5 + 1;
        }
}

// The layers of the article's networks, with few samples.
void PublishedSizes() {
  Check(MakeDynamic({3, 1152, 8, 8, 16, 3}, false, 5, 0.3));
  Check(MakeDynamic({2, 1152, 10, 8, 16, 3}, true, 5, 0.3));
  for (EmVariant variant : kVariants) {
    Check(MakeEm(EmOf(5, 72, 16, 4, 2, variant), false, 6));
    Check(MakeEm(EmOf(2, 288, 32, 4, 2, variant), true, 6));
    Check(MakeEm(EmOf(3, 144, 16, 4, 3, variant, 1e-4f), false, 6));
    Check(MakeEm(EmOf(3, 16, 8, 4, 2, variant), false, 6));
  }
}

// Without samples the outputs are empty and the gradients of the parameters 0, bias or not.
void EmptyBatch() {
  for (bool bias : {false, true}) {
    Check(MakeDynamic({0, 7, 3, 8, 16, 3}, bias, 7));
    Check(MakeDynamic({0, 5, 9, 3, 7, 1}, bias, 7));
    for (EmVariant variant : kVariants)
      for (int64_t pose_size : {3, 4}) Check(MakeEm(EmOf(0, 9, 5, pose_size, 2, variant), bias, 7));
  }
}

// ---------------------------------------------------------------------------------------------------------
// Extremes: nothing becomes NaN or infinite, and all stays as close to the reference as float can be.

void DynamicExtremes() {
  for (int iterations : {1, 3, 5})
    for (const DynamicDims& dims : {DynamicDims{3, 37, 5, 8, 16, iterations}, {3, 1, 5, 8, 16, iterations},
                                    {3, 37, 1, 5, 3, iterations}, {2, 129, 8, 3, 7, iterations}}) {
      for (double scale : {0.0, 1e-20, 1e-3, 30.0, 1e3}) Check(MakeDynamic(dims, true, 8, scale));
      DynamicCase problem = MakeDynamic(dims, false, 9);
      for (size_t n = dims.child_dim; n < problem.inputs.poses.size(); ++n)  // identical votes
        problem.inputs.poses[n] = problem.inputs.poses[n - dims.child_dim];
      const size_t weight = dims.parents * dims.child_dim * dims.parent_dim;
      for (size_t n = weight; n < problem.inputs.weights.size(); ++n)
        problem.inputs.weights[n] = problem.inputs.weights[n - weight];
      Check(problem);
      problem.inputs.weights.assign(problem.inputs.weights.size(), 0.0f);
      Check(problem);
      problem = MakeDynamic(dims, true, 10);
      for (float& bias : problem.inputs.bias) bias *= 100.0f;  // couplings of 0 and 1
      Check(problem);
      problem.inputs.doutputs.assign(problem.inputs.doutputs.size(), 0.0f);
      Check(problem);
    }
}

void EmExtremes() {
  for (EmVariant variant : kVariants)
    for (int iterations = 1; iterations <= 5; ++iterations)
      // Two children: routed evenly they stay so, and what rounding adds grows with every iteration.
      for (auto [children, parents, pose_size] :
           {std::array{19, 5, 4}, {1, 5, 4}, {19, 1, 4}, {9, 4, 3}, {2, 2, 5}}) {
        const EmDims dims = EmOf(3, children, parents, pose_size, iterations, variant, 1e-4f);
        for (double scale : {0.0, 1e-3, 1e3}) Check(MakeEm(dims, true, 11, scale));
        EmCase problem = MakeEm(dims, false, 12);
        for (float constant : {0.0f, 1.0f, 1e-13f}) {
          problem.inputs.activations.assign(problem.inputs.activations.size(), constant);
          Check(problem);
        }
        for (size_t n = 0; n < problem.inputs.activations.size(); ++n)
          problem.inputs.activations[n] = n % 3 == 0 ? 0.0f : n % 3 == 1 ? 1.0f : 0.5f;
        Check(problem);
        const size_t size = pose_size * pose_size;
        for (size_t n = size; n < problem.inputs.poses.size(); ++n)  // identical votes
          problem.inputs.poses[n] = problem.inputs.poses[n - size];
        const size_t weight = parents * size;
        for (size_t n = weight; n < problem.inputs.weights.size(); ++n)
          problem.inputs.weights[n] = problem.inputs.weights[n - weight];
        Check(problem);
        // A spread of 0.01 about a mean of 10: E[v^2] - E[v]^2 would lose it.
        for (size_t n = 0; n < problem.inputs.poses.size(); ++n)
          problem.inputs.poses[n] = 10.0f + 0.01f * std::sin(static_cast<float>(n));
        Check(problem);
        problem = MakeEm(dims, true, 13);
        for (float& bias : problem.inputs.bias) bias *= 100.0f;
        for (float& warm : problem.temperatures) warm = 1.0f;  // activations of 0 and 1
        Check(problem);
      }
}

void NotANumber() {
  const auto run = [](const auto& problem) { return Run(problem, {}); };
  for (bool bias : {false, true})
    for (int64_t child_dim : {8, 5}) {
      CheckNotANumber(MakeDynamic({3, 9, 5, child_dim, 16, 2}, bias, 18), run);
      for (EmVariant variant : kVariants)
        for (int64_t pose_size : {4, 3}) CheckNotANumber(MakeEm(EmOf(3, 9, 5, pose_size, 2, variant), bias, 18), run);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Threads.

template <typename Case>
void SameOnAnyExecutor(const Case& problem) {
  const auto alone = Run(problem, {});
  Compare(problem, alone);
  ExpectSame(problem, alone, Run(problem, {}), "again");
  ExpectSame(problem, alone, Run(problem, {}, 5), "other alignment");
  ExpectSame(problem, alone, Run(problem, {}, 0), "aligned");
  for (int threads : {1, 2, 3, 7}) {
    Pool pool(threads);
    const auto together = Run(problem, pool.Lend());
    ExpectSame(problem, alone, together, ("threads=" + std::to_string(threads)).c_str());
  }
  ExpectSame(problem, alone, Run(problem, {3, [](std::function<void()>) {}}), "helpers that never come");
  ExpectSame(problem, alone, Run(problem, {3, [](std::function<void()> task) { task(); }}), "at once");
  std::vector<std::function<void()>> late;  // run after the buffers are gone
  const Executor later{3, [&late](std::function<void()> task) { late.push_back(std::move(task)); }};
  ExpectSame(problem, alone, Run(problem, later), "helpers that come late");
  for (const auto& task : late) task();
}

void Threads() {
  for (bool bias : {false, true}) {
    SameOnAnyExecutor(MakeDynamic({67, 20, 3, 8, 16, 3}, bias, 14));
    SameOnAnyExecutor(MakeDynamic({1, 129, 5, 7, 9, 2}, bias, 14));
    SameOnAnyExecutor(MakeDynamic({6, 300, 8, 8, 16, 3}, bias, 14));
    for (EmVariant variant : kVariants) {
      SameOnAnyExecutor(MakeEm(EmOf(19, 18, 7, 4, 2, variant), bias, 15));
      SameOnAnyExecutor(MakeEm(EmOf(1, 72, 16, 4, 2, variant), bias, 15));
      SameOnAnyExecutor(MakeEm(EmOf(10, 33, 5, 3, 3, variant), bias, 15));
    }
  }
}

// What a task throws reaches the caller, and no thread of the pool; the other tasks are done all the same.
void ThreadsThatThrow() {
  for (int threads : {1, 3}) {
    Pool pool(threads);
    std::atomic<int> done{0};
    bool caught = false;
    try {
      ParallelFor(pool.Lend(), 20, [&](int64_t index) {
        if (index % 7 == 3) throw std::bad_alloc();
        ++done;
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    if (!caught || (threads > 1 && done != 17)) Fail("threads=%d: caught=%d done=%d", threads, caught, int(done));
  }
}

// Two callers at once, on one pool: what a framework does with two branches of a graph.
void ThreadsOfTwoCallers() {
  const DynamicCase dynamic = MakeDynamic({13, 40, 8, 8, 16, 3}, true, 16);
  const EmCase em = MakeEm(EmOf(13, 18, 5, 4, 2, EmVariant::kHinton2018), true, 17);
  const auto dynamic_alone = Run(dynamic, {});
  const auto em_alone = Run(em, {});
  Pool pool(3);
  for (int repeat = 0; repeat < 5; ++repeat) {
    DynamicCase::Results first;
    EmCase::Results second;
    std::thread other([&] { first = Run(dynamic, pool.Lend()); });
    second = Run(em, pool.Lend());
    other.join();
    ExpectSame(dynamic, dynamic_alone, first, "beside another caller");
    ExpectSame(em, em_alone, second, "beside another caller");
  }
}

// ---------------------------------------------------------------------------------------------------------

struct Test {
  const char* name;
  void (*run)();
  double conditioned_share;  // of its tensors that float may fail to do to kRelative
};

constexpr Test kTests[] = {{"reference_gradients", ReferenceGradients, 0.0},
                           {"golden_lengths", GoldenLengths, 0.0},
                           {"golden_em", GoldenEm, 0.1},
                           {"dynamic_sizes", DynamicSizes, 0.02},
                           {"em_sizes", EmSizes, 0.08},
                           {"published_sizes", PublishedSizes, 0.02},
                           {"empty_batch", EmptyBatch, 0.0},
                           {"dynamic_extremes", DynamicExtremes, 0.2},
                           {"em_extremes", EmExtremes, 0.2},
                           {"not_a_number", NotANumber, 0.0},
                           {"threads", Threads, 0.02},
                           {"threads_that_throw", ThreadsThatThrow, 0.0},
                           {"threads_two_callers", ThreadsOfTwoCallers, 0.0}};

int Main(const char* part) {
  int ran = 0;
  for (const Test& test : kTests) {
    if (std::strstr(test.name, part) == nullptr) continue;
    const int before = failures;
    const int64_t conditioned = tally.conditioned, compared = tally.compared;
    test.run();
    const int64_t those = tally.conditioned - conditioned, all = tally.compared - compared;
    if (those > all * test.conditioned_share) Fail("%s: too many judged by their conditioning", test.name);
    std::printf("%-22s %s (%d of %d tensors judged by their conditioning)\n", test.name,
                failures == before ? "ok" : "FAILED", int(those), int(all));
    std::fflush(stdout);
    ++ran;
  }
  if (ran == 0) Fail("no test is named %s", part);
  return Report("test_cpu", CpuIsa());
}

}  // namespace
}  // namespace testing
}  // namespace tfinv

int main(int count, char** arguments) { return tfinv::testing::Main(count > 1 ? arguments[1] : ""); }
