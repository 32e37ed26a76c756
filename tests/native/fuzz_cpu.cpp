// Random problems for the CPU half of custom_ops/core, against the reference.
//
//   fuzz_cpu SEED COUNT     the problems of seeds SEED, SEED + 1, ..., SEED + COUNT - 1
//
// A failure prints its seed, so that `fuzz_cpu THAT_SEED 1` runs that problem alone.
#include "run_cpu.h"

namespace tfinv {
namespace testing {
namespace {

// At most this many votes in a problem; each is a few hundred operations in the reference.
constexpr int64_t kVotes = 60000;
// Random problems that float cannot do to kRelative; more than this share would hide errors.
constexpr double kConditionedShare = 0.08;

int64_t Uniform(Random& random, int64_t lowest, int64_t highest) {
  return std::uniform_int_distribution<int64_t>(lowest, highest)(random);
}

bool Chance(Random& random, double probability) { return std::bernoulli_distribution(probability)(random); }

double Between(Random& random, double lowest, double highest) {  // uniform in the logarithm
  return lowest * std::pow(highest / lowest, std::uniform_real_distribution<double>(0.0, 1.0)(random));
}

// Sizes about the widths of vectors and tiles as often as any other.
int64_t Size(Random& random, int64_t highest) {
  static constexpr int64_t kEdges[] = {1,  2,  3,  4,  5,  7,  8,  9,  15,  16,
                                       17, 31, 32, 33, 63, 64, 65, 127, 128, 129};
  highest = std::max<int64_t>(highest, 1);
  if (Chance(random, 0.5)) {
    int64_t count = 0;
    while (count < 20 && kEdges[count] <= highest) ++count;
    return kEdges[Uniform(random, 0, count - 1)];
  }
  return static_cast<int64_t>(Between(random, 1.0, static_cast<double>(highest) + 0.99));
}

Executor AnyExecutor(Random& random, std::unique_ptr<Pool>& pool) {
  switch (Uniform(random, 0, 5)) {
    case 0: return {};
    case 1: return {3, [](std::function<void()>) {}};
    case 2: return {4, [](std::function<void()> task) { task(); }};
    default: pool = std::make_unique<Pool>(Uniform(random, 1, 9)); return pool->Lend();
  }
}

template <typename Case>
void CheckProblem(const Case& problem, Random& random) {
  std::unique_ptr<Pool> pool;
  const Executor executor = AnyExecutor(random, pool);
  const auto alone = Run(problem, {}, Uniform(random, 0, 15));
  Compare(problem, alone);
  ExpectSame(problem, alone, Run(problem, executor, Uniform(random, 0, 15)), "another executor");
}

void FuzzDynamic(Random& random) {
  DynamicDims dims{};
  const bool published = Chance(random, 0.3);
  dims.child_dim = published ? 8 : Size(random, 40);
  dims.parent_dim = published ? 16 : Size(random, 70);
  dims.parents = Size(random, std::min<int64_t>(140, kVotes / dims.parent_dim));
  dims.children = Size(random, std::min<int64_t>(300, kVotes / (dims.parent_dim * dims.parents)));
  dims.batch = Chance(random, 0.02) ? 0 : Size(random, std::min<int64_t>(
      140, kVotes / (dims.parent_dim * dims.parents * dims.children)));
  dims.iterations = static_cast<int>(Uniform(random, 1, 5));
  const double scale = Between(random, 0.05, 1.5);
  CheckProblem(MakeDynamic(dims, Chance(random, 0.4), random(), scale), random);
}

void FuzzEm(Random& random) {
  EmDims dims{};
  dims.pose_size = Chance(random, 0.4) ? 4 : Uniform(random, 1, 6);
  const int64_t size = dims.pose_size * dims.pose_size;
  dims.parents = Size(random, 70);
  dims.children = Size(random, std::min<int64_t>(300, kVotes / (size * dims.parents)));
  dims.batch = Chance(random, 0.02) ? 0 : Size(random, std::min<int64_t>(
      70, kVotes / (size * dims.parents * dims.children)));
  dims.iterations = static_cast<int>(Uniform(random, 1, 5));
  dims.variant = Chance(random, 0.5) ? EmVariant::kHinton2018 : EmVariant::kArticle;
  dims.variance_floor = static_cast<float>(Between(random, 1e-3, 1e-1));
  const double scale = Between(random, 0.1, 1.5);
  EmCase problem = MakeEm(dims, Chance(random, 0.4), random(), scale);
  const float warmer = static_cast<float>(Between(random, 1.0, 20.0));
  for (float& temperature : problem.temperatures) temperature *= warmer;
  if (Chance(random, 0.2))
    for (float& activation : problem.inputs.activations)
      if (Chance(random, 0.3)) activation = Chance(random, 0.5) ? 0.0f : 1.0f;
  CheckProblem(problem, random);
}

int Main(uint64_t seed, uint64_t problems) {
  most_rounding = 64.0;
  for (uint64_t current = seed; current != seed + problems; ++current) {
    Random random(current);
    const int before = failures;
    Chance(random, 0.5) ? FuzzDynamic(random) : FuzzEm(random);
    if (failures != before) std::printf("failing seed: %llu\n", static_cast<unsigned long long>(current));
  }
  if (problems >= 100 && tally.conditioned > kConditionedShare * tally.compared)
    Fail("%lld of %lld tensors were judged by their conditioning", static_cast<long long>(tally.conditioned),
         static_cast<long long>(tally.compared));
  std::printf("problems=%llu from seed %llu\n", static_cast<unsigned long long>(problems),
              static_cast<unsigned long long>(seed));
  return Report("fuzz_cpu", CpuIsa());
}

}  // namespace
}  // namespace testing
}  // namespace tfinv

int main(int count, char** arguments) {
  if (count != 3) {
    std::printf("usage: fuzz_cpu SEED COUNT\n");
    return 2;
  }
  return tfinv::testing::Main(std::strtoull(arguments[1], nullptr, 10), std::strtoull(arguments[2], nullptr, 10));
}
