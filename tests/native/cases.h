// Random routing problems and the comparison of their results with reference.h, for any device.
#ifndef TFINV_TESTS_NATIVE_CASES_H_
#define TFINV_TESTS_NATIVE_CASES_H_

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>

#include "reference.h"

namespace tfinv {
namespace testing {

inline int failures = 0;

inline void Fail(const char* format, ...) {
  ++failures;
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("FAILED: ");
  std::vprintf(format, arguments);
  std::printf("\n");
  std::fflush(stdout);
  va_end(arguments);
}

// ---------------------------------------------------------------------------------------------------------
// Problems.

using Random = std::mt19937_64;

inline std::vector<float> Normal(Random& random, int64_t count, double scale) {
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(normal(random));
  return values;
}

// The inputs in another precision, each value changed by at most `noise` of itself.
template <typename To, typename From>
To Converted(From from, double noise, Random& random) {
  std::uniform_real_distribution<double> uniform(-noise, noise);
  To to;
  const auto sources = from.Tensors();
  const auto targets = to.Tensors();
  for (size_t n = 0; n < sources.size(); ++n)
    for (double value : *sources[n])
      targets[n]->push_back(noise > 0 ? value * (1 + uniform(random)) : value);
  return to;
}

struct DynamicCase {
  template <typename Real> using Inputs = reference::DynamicInputs<Real>;
  using Results = reference::DynamicResults<float>;

  DynamicDims dims;
  Inputs<float> inputs;

  DynamicDims Dims() const { return dims; }

  template <typename Real>
  reference::DynamicResults<Real> Reference(const Inputs<Real>& values) const {
    return reference::Dynamic(dims, values);
  }

  std::string Name() const {
    char text[200];
    std::snprintf(text, sizeof text, "dynamic B=%d I=%d J=%d K=%d D=%d R=%d bias=%d", int(dims.batch),
                  int(dims.children), int(dims.parents), int(dims.child_dim), int(dims.parent_dim),
                  dims.iterations, !inputs.bias.empty());
    return text;
  }
};

struct EmCase {
  template <typename Real> using Inputs = reference::EmInputs<Real>;
  using Results = reference::EmResults<float>;

  EmDims dims;
  std::vector<float> temperatures;
  Inputs<float> inputs;

  EmDims Dims() const {
    EmDims result = dims;
    result.inverse_temperatures = temperatures.data();
    return result;
  }

  template <typename Real>
  reference::EmResults<Real> Reference(const Inputs<Real>& values) const {
    return reference::Em(Dims(), values);
  }

  std::string Name() const {
    char text[200];
    std::snprintf(text, sizeof text, "em %s B=%d I=%d J=%d P=%d R=%d bias=%d floor=%g",
                  dims.variant == EmVariant::kArticle ? "article" : "hinton2018", int(dims.batch),
                  int(dims.children), int(dims.parents), int(dims.pose_size), dims.iterations,
                  !inputs.bias.empty(), dims.variance_floor);
    return text;
  }
};

// Poses of standard deviation `scale`; weights that keep it in the votes.
inline DynamicCase MakeDynamic(const DynamicDims& dims, bool bias, uint64_t seed, double scale = 1.0) {
  Random random(seed);
  const int64_t pairs = dims.children * dims.parents, outputs = dims.batch * dims.parents * dims.parent_dim;
  DynamicCase made{dims, {}};
  made.inputs.poses = Normal(random, dims.batch * dims.children * dims.child_dim, scale);
  made.inputs.weights =
      Normal(random, pairs * dims.child_dim * dims.parent_dim, 1.0 / std::sqrt(dims.child_dim));
  // Dozens of children add up: without this the sums saturate the squashing and every gradient vanishes.
  for (float& weight : made.inputs.weights) weight /= std::sqrt(static_cast<float>(dims.parent_dim));
  if (bias) made.inputs.bias = Normal(random, pairs, 1.0);
  made.inputs.doutputs = Normal(random, outputs, 1.0);
  return made;
}

inline EmCase MakeEm(const EmDims& dims, bool bias, uint64_t seed, double scale = 1.0) {
  Random random(seed);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  const int64_t pairs = dims.children * dims.parents, size = dims.pose_size * dims.pose_size;
  EmCase made{dims, {}, {}};
  for (int t = 0; t < dims.iterations; ++t)  // the paper's schedule
    made.temperatures.push_back(0.01f * (1.0f - std::pow(0.95f, static_cast<float>(t + 1))));
  made.inputs.poses = Normal(random, dims.batch * dims.children * size, scale);
  made.inputs.weights = Normal(random, pairs * size, 1.0 / std::sqrt(dims.pose_size));
  for (int64_t n = 0; n < dims.batch * dims.children; ++n)
    made.inputs.activations.push_back(uniform(random));
  made.inputs.beta_u = Normal(random, dims.parents, 1.0);
  made.inputs.beta_a = Normal(random, dims.parents, 1.0);
  if (bias) made.inputs.bias = Normal(random, pairs, 1.0);
  made.inputs.doutputs = Normal(random, dims.batch * dims.parents * size, 1.0);
  made.inputs.doutput_activations = Normal(random, dims.batch * dims.parents, 1.0);
  return made;
}

// ---------------------------------------------------------------------------------------------------------
// Comparison.

// Single precision rounds by 6e-8. Sums of a thousand terms, a softmax of logits up to 20 and up to five
// iterations multiply that by some tens: 2e-5 of the largest entry of the tensor leaves a factor of a few.
constexpr double kRelative = 2e-5;
// A gradient that is 0 in exact arithmetic; upstream gradients are of size 1.
constexpr double kAbsolute = 1e-8;
// A problem may be worse conditioned than that (a coupling about to flip, a variance at its floor). Then the
// error may be this many times what float costs the plain loops, or what changing the inputs by kNoise
// changes. kNoise is twice what an exponential may be off by; the largest of a few draws is a rough guess.
// The fuzzer, whose thousands of problems meet the rare ones where it is too low, allows more.
inline double most_rounding = 16.0;
constexpr double kNoise = 4e-7;
constexpr int kDraws = 4;

// How the comparisons went; the share that needed most_rounding must stay small, or it would hide errors.
struct Tally {
  int64_t compared = 0, conditioned = 0;
  double most_rounding = 0;             // largest ratio of error and rounding among the conditioned
  std::map<std::string, double> worst;  // error by largest entry, where kRelative was enough
};

inline Tally tally;

template <typename A, typename B>
double Distance(const std::vector<A>& first, const std::vector<B>& second) {
  double result = 0;
  for (size_t n = 0; n < first.size(); ++n)
    result = std::fmax(result, std::fabs(double(first[n]) - double(second[n])));
  return result;
}

template <typename Real>
bool Finite(const std::vector<Real>& values) {
  return std::all_of(values.begin(), values.end(), [](Real value) { return std::isfinite(value); });
}

inline double Largest(const std::vector<double>& values) {
  return Distance(values, std::vector<double>(values.size(), 0.0));
}

// What one float evaluation may differ by, for each tensor.
template <typename Case>
std::vector<double> RoundingOf(const Case& problem, const reference::Named<double>& truth) {
  Random random(1);
  std::vector<double> result(truth.size(), 0.0);
  const auto raise = [&](const auto& tensors) {
    for (size_t n = 0; n < truth.size(); ++n)
      result[n] = std::fmax(result[n], Distance(truth[n].second, tensors[n].second));
  };
  raise(problem.template Reference<float>(problem.inputs).Tensors(problem.Dims()));
  for (int draw = 0; draw < kDraws; ++draw) {
    using Doubles = typename Case::template Inputs<double>;
    auto moved = Converted<Doubles>(problem.inputs, kNoise, random);
    // Even couplings that should stay even, as of two equally active children: rounding tips the scales.
    std::uniform_real_distribution<double> uniform(-kNoise, kNoise);
    if (moved.bias.empty())
      for (int64_t pair = 0; pair < problem.dims.children * problem.dims.parents; ++pair)
        moved.bias.push_back(uniform(random));
    raise(problem.template Reference<double>(moved).Tensors(problem.Dims()));
  }
  return result;
}

// Outputs, saved state and every gradient: finite and equal to the reference.
template <typename Case>
void Compare(const Case& problem, const typename Case::Results& results) {
  Random random(1);
  using Doubles = typename Case::template Inputs<double>;
  const auto doubles = Converted<Doubles>(problem.inputs, 0.0, random);
  const auto truth = problem.template Reference<double>(doubles).Tensors(problem.Dims());
  const auto found = results.Tensors(problem.Dims());
  std::vector<double> rounding;
  for (size_t n = 0; n < truth.size(); ++n) {
    const std::string what = problem.Name() + ": " + truth[n].first;
    if (found[n].second.size() != truth[n].second.size()) {
      Fail("%s has %zu entries, not %zu", what.c_str(), found[n].second.size(), truth[n].second.size());
      continue;
    }
    if (!Finite(found[n].second) || !Finite(truth[n].second)) {
      Fail("%s is not finite%s", what.c_str(), Finite(truth[n].second) ? "" : ", nor is the reference");
      continue;
    }
    const double error = Distance(found[n].second, truth[n].second), largest = Largest(truth[n].second);
    ++tally.compared;
    if (error <= kRelative * largest + kAbsolute) {
      double& worst = tally.worst[truth[n].first];
      if (largest > 1e-3) worst = std::fmax(worst, error / largest);
      continue;
    }
    ++tally.conditioned;
    if (rounding.empty()) rounding = RoundingOf(problem, truth);
    tally.most_rounding = std::fmax(tally.most_rounding, error / rounding[n]);
    if (!(error <= most_rounding * rounding[n]))
      Fail("%s differs by %.3g; largest entry %.3g, rounding %.3g", what.c_str(), error, largest,
           rounding[n]);
  }
}

// Bitwise equality of everything that two runs returned.
template <typename Case>
void ExpectSame(const Case& problem, const typename Case::Results& first,
                const typename Case::Results& second, const char* why) {
  const auto a = first.Tensors(problem.Dims()), b = second.Tensors(problem.Dims());
  for (size_t n = 0; n < a.size(); ++n)
    if (a[n].second.size() != b[n].second.size() ||
        (!a[n].second.empty() &&
         std::memcmp(a[n].second.data(), b[n].second.data(), a[n].second.size() * sizeof(float)) != 0))
      Fail("%s: %s is not bitwise the same: %s", problem.Name().c_str(), a[n].first.c_str(), why);
}

// Inputs of the forward pass that reach the outputs.
struct Given {
  std::vector<float>* values;
  bool by_sample;
};
inline std::vector<Given> GivenOf(DynamicCase& problem) {
  auto& in = problem.inputs;
  return {{&in.poses, true}, {&in.weights, false}, {&in.bias, false}};
}
inline std::vector<Given> GivenOf(EmCase& problem) {
  auto& in = problem.inputs;
  std::vector<Given> given = {{&in.poses, true}, {&in.weights, false}, {&in.beta_u, false}, {&in.beta_a, false},
                              {&in.bias, false}};
  if (problem.dims.variant == EmVariant::kHinton2018) given.push_back({&in.activations, true});
  return given;
}

inline std::vector<const std::vector<float>*> OutputsOf(const DynamicCase::Results& results) {
  return {&results.outputs};
}
inline std::vector<const std::vector<float>*> OutputsOf(const EmCase::Results& results) {
  return {&results.outputs, &results.output_activations};
}

// All outputs of sample b of a batch.
template <typename Results>
std::vector<float> OfSample(const Results& results, int64_t b, int64_t batch) {
  std::vector<float> found;
  for (const std::vector<float>* outputs : OutputsOf(results)) {
    const int64_t size = static_cast<int64_t>(outputs->size()) / batch;
    found.insert(found.end(), outputs->begin() + b * size, outputs->begin() + (b + 1) * size);
  }
  return found;
}

// NaN given to run(problem) comes out again, or nobody would see that a training has diverged; it comes out of
// the samples that it was given for, and all others stay what they are.
template <typename Case, typename Run>
void CheckNotANumber(Case problem, const Run& run) {
  const auto clean = run(problem);
  for (const Given& given : GivenOf(problem)) {
    if (given.values->empty()) continue;
    const float before = given.values->front();
    given.values->front() = std::nanf("");
    const auto results = run(problem);
    given.values->front() = before;
    for (int64_t b = 0; b < problem.dims.batch; ++b) {
      const std::vector<float> found = OfSample(results, b, problem.dims.batch);
      const bool given_here = !given.by_sample || b == 0;
      const bool lost = std::none_of(found.begin(), found.end(), [](float value) { return std::isnan(value); });
      if (given_here ? lost : found != OfSample(clean, b, problem.dims.batch))
        Fail("%s: NaN in an input of %zu values is %s of sample %d", problem.Name().c_str(),
             given.values->size(), given_here ? "lost on the way to the outputs" : "in the outputs", int(b));
    }
  }
}

// Prints what was compared and how far off it was; returns the exit status.
inline int Report(const char* name, const char* device) {
  for (const auto& [tensor, error] : tally.worst) std::printf("  %-20s %.2g\n", tensor.c_str(), error);
  std::printf("%s: device=%s compared=%lld conditioned=%lld (at most %.1f times rounding) failures=%d\n",
              name, device, static_cast<long long>(tally.compared), static_cast<long long>(tally.conditioned),
              tally.most_rounding, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace testing
}  // namespace tfinv

#endif  // TFINV_TESTS_NATIVE_CASES_H_
