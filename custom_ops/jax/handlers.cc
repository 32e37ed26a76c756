// XLA FFI handlers of both routings: check shapes, allocate, call the core.
//
// A bias of shape [0, 0] stands for none, as an argument cannot be left out; its gradient has that shape too.
#include <algorithm>
#include <functional>
#include <initializer_list>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "core/routing.h"
#include "xla/ffi/api/ffi.h"

namespace tfinv {
namespace {

namespace ffi = xla::ffi;

using Input = ffi::Buffer<ffi::F32>;
using Output = ffi::Result<ffi::Buffer<ffi::F32>>;
using Shape = std::initializer_list<int64_t>;

template <typename Sizes>
std::string Text(const Sizes& sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

// An error unless `buffer` has the shape; `axes` names it, as in "[I, J]".
ffi::Error Expect(const char* name, const Input& buffer, const char* axes, Shape shape) {
  const auto found = buffer.dimensions();
  if (std::equal(found.begin(), found.end(), shape.begin(), shape.end())) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("Invalid shape of argument " + std::string(name) + ". Expected " + axes +
                                     " = " + Text(shape) + ". Received: " + name + ".shape=" + Text(found));
}

ffi::Error ExpectBias(const Input& bias, int64_t children, int64_t parents) {
  if (Expect("bias", bias, "", {0, 0}).success()) return ffi::Error::Success();
  return Expect("bias", bias, "[I, J]", {children, parents});
}

#define TFINV_RETURN_IF_ERROR(expression)                               \
  do {                                                                  \
    if (ffi::Error error = (expression); error.failure()) return error; \
  } while (false)

const float* DataOrNull(const Input& buffer) {
  return buffer.element_count() ? buffer.typed_data() : nullptr;
}
float* DataOrNull(Output& buffer) { return buffer->element_count() ? buffer->typed_data() : nullptr; }

// The two devices: what the handlers are given besides the arrays.
struct Cpu {
  ffi::ThreadPool& pool;

  // Calls run(executor) with the threads that XLA lends; lack of memory fails the op, not the process.
  template <typename Call>
  ffi::Error Run(const Call& run) const {
    try {
      run(Executor{static_cast<int>(pool.num_threads()),
                   [this](std::function<void()> work) { pool.Schedule(std::move(work)); }});
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        "Out of memory in a routing op. Use a smaller batch.");
    }
    return ffi::Error::Success();
  }
};

#ifdef TFINV_WITH_CUDA
struct Cuda {
  void* stream;
  ffi::ScratchAllocator& scratch;

  // Calls launch(workspace, stream) with `bytes` of device memory.
  template <typename Launch>
  ffi::Error Run(size_t bytes, const Launch& launch) const {
    void* workspace = nullptr;
    if (bytes > 0) {
      // XLA refuses an alignment above 16, which is what rows of four floats need.
      const std::optional<void*> memory = scratch.Allocate(bytes, 16);
      if (!memory.has_value())
        return ffi::Error(
            ffi::ErrorCode::kResourceExhausted,
            "No device memory for the workspace of a routing op: " + std::to_string(bytes) + " bytes.");
      workspace = *memory;
    }
    const char* error = launch(workspace, stream);
    if (error == nullptr) return ffi::Error::Success();
    return ffi::Error::Internal(std::string("Routing on the GPU failed: ") + error);
  }
};
#endif

// ---------------------------------------------------------------------------------------------------------
// Dynamic routing.

ffi::Error ReadDims(const Input& poses, const Input& weights, const Input& bias, int64_t iterations,
                    DynamicDims* dims) {
  const auto pose = poses.dimensions(), weight = weights.dimensions();
  if (pose.size() != 3 || weight.size() != 4 || pose[1] != weight[0] || pose[2] != weight[2])
    return ffi::Error::InvalidArgument(
        "Arguments poses [B, I, K] and weights [I, J, K, D] must agree in I and K. Received: poses.shape=" +
        Text(pose) + ", weights.shape=" + Text(weight));
  if (weights.element_count() == 0 || iterations < 1)
    return ffi::Error::InvalidArgument(
        "Invalid sizes. Expected weights [I, J, K, D], each at least 1, and iterations of at least 1. "
        "Received: "
        "weights.shape=" +
        Text(weight) + ", iterations=" + std::to_string(iterations));
  *dims = {pose[0], weight[0], weight[1], weight[2], weight[3], static_cast<int>(iterations)};
  return ExpectBias(bias, dims->children, dims->parents);
}

ffi::Error Run(const Cpu& cpu, const DynamicDims& dims, Input poses, Input weights, Input bias,
               Output outputs, Output sums) {
  return cpu.Run([&](const Executor& executor) {
    DynamicForward(dims, poses.typed_data(), weights.typed_data(), DataOrNull(bias), outputs->typed_data(),
                   sums->typed_data(), executor);
  });
}

ffi::Error RunGradient(const Cpu& cpu, const DynamicDims& dims, Input poses, Input weights, Input bias,
                       Input sums, Input doutputs, Output dposes, Output dweights, Output dbias) {
  return cpu.Run([&](const Executor& executor) {
    DynamicBackward(dims, poses.typed_data(), weights.typed_data(), DataOrNull(bias), sums.typed_data(),
                    doutputs.typed_data(), dposes->typed_data(), dweights->typed_data(), DataOrNull(dbias),
                    executor);
  });
}

#ifdef TFINV_WITH_CUDA
ffi::Error Run(const Cuda& cuda, const DynamicDims& dims, Input poses, Input weights, Input bias,
               Output outputs, Output sums) {
  return cuda.Run(DynamicCudaWorkspaceBytes(dims, false), [&](void* workspace, void* stream) {
    return DynamicForwardCuda(dims, poses.typed_data(), weights.typed_data(), DataOrNull(bias),
                              outputs->typed_data(), sums->typed_data(), workspace, stream);
  });
}

ffi::Error RunGradient(const Cuda& cuda, const DynamicDims& dims, Input poses, Input weights, Input bias,
                       Input sums, Input doutputs, Output dposes, Output dweights, Output dbias) {
  return cuda.Run(DynamicCudaWorkspaceBytes(dims, true), [&](void* workspace, void* stream) {
    return DynamicBackwardCuda(dims, poses.typed_data(), weights.typed_data(), DataOrNull(bias),
                               sums.typed_data(), doutputs.typed_data(), dposes->typed_data(),
                               dweights->typed_data(), DataOrNull(dbias), workspace, stream);
  });
}
#endif

template <typename Device>
ffi::Error Dynamic(const Device& device, Input poses, Input weights, Input bias, Output outputs, Output sums,
                   int64_t iterations) {
  DynamicDims dims;
  TFINV_RETURN_IF_ERROR(ReadDims(poses, weights, bias, iterations, &dims));
  TFINV_RETURN_IF_ERROR(
      Expect("outputs", *outputs, "[B, J, D]", {dims.batch, dims.parents, dims.parent_dim}));
  TFINV_RETURN_IF_ERROR(
      Expect("sums", *sums, "[R, B, J, D]", {dims.iterations, dims.batch, dims.parents, dims.parent_dim}));
  return Run(device, dims, poses, weights, bias, outputs, sums);
}

template <typename Device>
ffi::Error DynamicGradient(const Device& device, Input poses, Input weights, Input bias, Input sums,
                           Input doutputs, Output dposes, Output dweights, Output dbias, int64_t iterations) {
  DynamicDims dims;
  TFINV_RETURN_IF_ERROR(ReadDims(poses, weights, bias, iterations, &dims));
  TFINV_RETURN_IF_ERROR(
      Expect("sums", sums, "[R, B, J, D]", {dims.iterations, dims.batch, dims.parents, dims.parent_dim}));
  TFINV_RETURN_IF_ERROR(
      Expect("doutputs", doutputs, "[B, J, D]", {dims.batch, dims.parents, dims.parent_dim}));
  TFINV_RETURN_IF_ERROR(Expect("dposes", *dposes, "[B, I, K]", {dims.batch, dims.children, dims.child_dim}));
  TFINV_RETURN_IF_ERROR(Expect("dweights", *dweights, "[I, J, K, D]",
                               {dims.children, dims.parents, dims.child_dim, dims.parent_dim}));
  if (dbias->element_count() != bias.element_count()) return Expect("dbias", *dbias, "the shape of bias", {});
  return RunGradient(device, dims, poses, weights, bias, sums, doutputs, dposes, dweights, dbias);
}

// ---------------------------------------------------------------------------------------------------------
// EM routing.

struct EmInputs {
  Input poses, activations, weights, beta_u, beta_a, bias;
};

ffi::Error ReadDims(const EmInputs& in, ffi::Span<const float> temperatures, int64_t variant,
                    float variance_floor, EmDims* dims) {
  const auto pose = in.poses.dimensions(), weight = in.weights.dimensions();
  if (pose.size() != 4 || weight.size() != 4 || pose[1] != weight[0] || pose[2] != weight[2] ||
      pose[3] != weight[2] || weight[2] != weight[3])
    return ffi::Error::InvalidArgument(
        "Arguments poses [B, I, P, P] and weights [I, J, P, P] must agree in I and P. Received: "
        "poses.shape=" +
        Text(pose) + ", weights.shape=" + Text(weight));
  if (in.weights.element_count() == 0 || temperatures.size() < 1 || variant < 0 || variant > 1)
    return ffi::Error::InvalidArgument(
        "Invalid sizes. Expected weights [I, J, P, P], each at least 1, at least one inverse temperature, "
        "and variant "
        "0 or 1. Received: weights.shape=" +
        Text(weight) + ", inverse_temperatures=[" + std::to_string(temperatures.size()) +
        "], variant=" + std::to_string(variant));
  *dims = {pose[0],
           weight[0],
           weight[1],
           weight[2],
           static_cast<int>(temperatures.size()),
           static_cast<EmVariant>(variant),
           variance_floor,
           temperatures.begin()};
  TFINV_RETURN_IF_ERROR(Expect("activations", in.activations, "[B, I]", {dims->batch, dims->children}));
  TFINV_RETURN_IF_ERROR(Expect("beta_u", in.beta_u, "[J]", {dims->parents}));
  TFINV_RETURN_IF_ERROR(Expect("beta_a", in.beta_a, "[J]", {dims->parents}));
  return ExpectBias(in.bias, dims->children, dims->parents);
}

struct EmGiven {
  Input statistics, doutputs, doutput_activations;
};
struct EmGradients {
  Output dposes, dactivations, dweights, dbeta_u, dbeta_a, dbias;
};

ffi::Error Run(const Cpu& cpu, const EmDims& dims, EmInputs in, Output outputs, Output output_activations,
               Output statistics) {
  return cpu.Run([&](const Executor& executor) {
    EmForward(dims, in.poses.typed_data(), in.activations.typed_data(), in.weights.typed_data(),
              in.beta_u.typed_data(), in.beta_a.typed_data(), DataOrNull(in.bias), outputs->typed_data(),
              output_activations->typed_data(), statistics->typed_data(), executor);
  });
}

ffi::Error RunGradient(const Cpu& cpu, const EmDims& dims, EmInputs in, EmGiven given, EmGradients out) {
  return cpu.Run([&](const Executor& executor) {
    EmBackward(dims, in.poses.typed_data(), in.activations.typed_data(), in.weights.typed_data(),
               in.beta_u.typed_data(), in.beta_a.typed_data(), DataOrNull(in.bias),
               given.statistics.typed_data(), given.doutputs.typed_data(),
               given.doutput_activations.typed_data(), out.dposes->typed_data(),
               out.dactivations->typed_data(), out.dweights->typed_data(), out.dbeta_u->typed_data(),
               out.dbeta_a->typed_data(), DataOrNull(out.dbias), executor);
  });
}

#ifdef TFINV_WITH_CUDA
ffi::Error Run(const Cuda& cuda, const EmDims& dims, EmInputs in, Output outputs, Output output_activations,
               Output statistics) {
  return cuda.Run(EmCudaWorkspaceBytes(dims, false), [&](void* workspace, void* stream) {
    return EmForwardCuda(dims, in.poses.typed_data(), in.activations.typed_data(), in.weights.typed_data(),
                         in.beta_u.typed_data(), in.beta_a.typed_data(), DataOrNull(in.bias),
                         outputs->typed_data(), output_activations->typed_data(), statistics->typed_data(),
                         workspace, stream);
  });
}

ffi::Error RunGradient(const Cuda& cuda, const EmDims& dims, EmInputs in, EmGiven given, EmGradients out) {
  return cuda.Run(EmCudaWorkspaceBytes(dims, true), [&](void* workspace, void* stream) {
    return EmBackwardCuda(
        dims, in.poses.typed_data(), in.activations.typed_data(), in.weights.typed_data(),
        in.beta_u.typed_data(), in.beta_a.typed_data(), DataOrNull(in.bias), given.statistics.typed_data(),
        given.doutputs.typed_data(), given.doutput_activations.typed_data(), out.dposes->typed_data(),
        out.dactivations->typed_data(), out.dweights->typed_data(), out.dbeta_u->typed_data(),
        out.dbeta_a->typed_data(), DataOrNull(out.dbias), workspace, stream);
  });
}
#endif

template <typename Device>
ffi::Error Em(const Device& device, Input poses, Input activations, Input weights, Input beta_u, Input beta_a,
              Input bias, Output outputs, Output output_activations, Output statistics,
              ffi::Span<const float> temperatures, int64_t variant, float variance_floor) {
  const EmInputs in = {poses, activations, weights, beta_u, beta_a, bias};
  EmDims dims;
  TFINV_RETURN_IF_ERROR(ReadDims(in, temperatures, variant, variance_floor, &dims));
  const int64_t size = dims.pose_size;
  TFINV_RETURN_IF_ERROR(Expect("outputs", *outputs, "[B, J, P, P]", {dims.batch, dims.parents, size, size}));
  TFINV_RETURN_IF_ERROR(
      Expect("output_activations", *output_activations, "[B, J]", {dims.batch, dims.parents}));
  TFINV_RETURN_IF_ERROR(Expect("statistics", *statistics, "[R, B, J, 2 H + 1]",
                               {dims.iterations, dims.batch, dims.parents, 2 * size * size + 1}));
  return Run(device, dims, in, outputs, output_activations, statistics);
}

template <typename Device>
ffi::Error EmGradient(const Device& device, Input poses, Input activations, Input weights, Input beta_u,
                      Input beta_a, Input bias, Input statistics, Input doutputs, Input doutput_activations,
                      Output dposes, Output dactivations, Output dweights, Output dbeta_u, Output dbeta_a,
                      Output dbias, ffi::Span<const float> temperatures, int64_t variant,
                      float variance_floor) {
  const EmInputs in = {poses, activations, weights, beta_u, beta_a, bias};
  const EmGiven given = {statistics, doutputs, doutput_activations};
  EmGradients out = {dposes, dactivations, dweights, dbeta_u, dbeta_a, dbias};
  EmDims dims;
  TFINV_RETURN_IF_ERROR(ReadDims(in, temperatures, variant, variance_floor, &dims));
  const int64_t size = dims.pose_size;
  TFINV_RETURN_IF_ERROR(Expect("statistics", given.statistics, "[R, B, J, 2 H + 1]",
                               {dims.iterations, dims.batch, dims.parents, 2 * size * size + 1}));
  TFINV_RETURN_IF_ERROR(
      Expect("doutputs", given.doutputs, "[B, J, P, P]", {dims.batch, dims.parents, size, size}));
  TFINV_RETURN_IF_ERROR(
      Expect("doutput_activations", given.doutput_activations, "[B, J]", {dims.batch, dims.parents}));
  TFINV_RETURN_IF_ERROR(
      Expect("dposes", *out.dposes, "[B, I, P, P]", {dims.batch, dims.children, size, size}));
  TFINV_RETURN_IF_ERROR(Expect("dactivations", *out.dactivations, "[B, I]", {dims.batch, dims.children}));
  TFINV_RETURN_IF_ERROR(
      Expect("dweights", *out.dweights, "[I, J, P, P]", {dims.children, dims.parents, size, size}));
  TFINV_RETURN_IF_ERROR(Expect("dbeta_u", *out.dbeta_u, "[J]", {dims.parents}));
  TFINV_RETURN_IF_ERROR(Expect("dbeta_a", *out.dbeta_a, "[J]", {dims.parents}));
  if (out.dbias->element_count() != in.bias.element_count())
    return Expect("dbias", *out.dbias, "the shape of bias", {});
  return RunGradient(device, dims, in, given, out);
}

// What XLA calls: the device, then arrays and attributes in the order of tfinv/ops/fused_jax.py.

// N at least 1: a binding cannot be copied or moved, only extended.
template <int N, typename Binding>
auto Arguments(Binding&& binding) {
  if constexpr (N == 1)
    return std::move(binding).template Arg<Input>();
  else
    return Arguments<N - 1>(std::move(binding).template Arg<Input>());
}

template <int N, typename Binding>
auto Results(Binding&& binding) {
  if constexpr (N == 1)
    return std::move(binding).template Ret<ffi::Buffer<ffi::F32>>();
  else
    return Results<N - 1>(std::move(binding).template Ret<ffi::Buffer<ffi::F32>>());
}

template <int kArguments, int kResults, typename Binding>
auto DynamicBinding(Binding&& device) {
  return Results<kResults>(Arguments<kArguments>(std::move(device))).template Attr<int64_t>("iterations");
}

template <int kArguments, int kResults, typename Binding>
auto EmBinding(Binding&& device) {
  return Results<kResults>(Arguments<kArguments>(std::move(device)))
      .template Attr<ffi::Span<const float>>("inverse_temperatures")
      .template Attr<int64_t>("variant")
      .template Attr<float>("variance_floor");
}

auto OnCpu() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

constexpr auto kDynamicCpu = [](ffi::ThreadPool pool, auto... rest) { return Dynamic(Cpu{pool}, rest...); };
constexpr auto kDynamicGradientCpu = [](ffi::ThreadPool pool, auto... rest) {
  return DynamicGradient(Cpu{pool}, rest...);
};
constexpr auto kEmCpu = [](ffi::ThreadPool pool, auto... rest) { return Em(Cpu{pool}, rest...); };
constexpr auto kEmGradientCpu = [](ffi::ThreadPool pool, auto... rest) {
  return EmGradient(Cpu{pool}, rest...);
};

XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvDynamicRoutingCpu, kDynamicCpu, (DynamicBinding<3, 2>(OnCpu())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvDynamicRoutingGradCpu, kDynamicGradientCpu,
                              (DynamicBinding<5, 3>(OnCpu())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvEmRoutingCpu, kEmCpu, (EmBinding<6, 3>(OnCpu())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvEmRoutingGradCpu, kEmGradientCpu, (EmBinding<9, 6>(OnCpu())));

#ifdef TFINV_WITH_CUDA
auto OnCuda() { return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>().Ctx<ffi::ScratchAllocator>(); }

constexpr auto kDynamicCuda = [](void* stream, ffi::ScratchAllocator scratch, auto... rest) {
  return Dynamic(Cuda{stream, scratch}, rest...);
};
constexpr auto kDynamicGradientCuda = [](void* stream, ffi::ScratchAllocator scratch, auto... rest) {
  return DynamicGradient(Cuda{stream, scratch}, rest...);
};
constexpr auto kEmCuda = [](void* stream, ffi::ScratchAllocator scratch, auto... rest) {
  return Em(Cuda{stream, scratch}, rest...);
};
constexpr auto kEmGradientCuda = [](void* stream, ffi::ScratchAllocator scratch, auto... rest) {
  return EmGradient(Cuda{stream, scratch}, rest...);
};

XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvDynamicRoutingCuda, kDynamicCuda, (DynamicBinding<3, 2>(OnCuda())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvDynamicRoutingGradCuda, kDynamicGradientCuda,
                              (DynamicBinding<5, 3>(OnCuda())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvEmRoutingCuda, kEmCuda, (EmBinding<6, 3>(OnCuda())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(TfinvEmRoutingGradCuda, kEmGradientCuda, (EmBinding<9, 6>(OnCuda())));
#endif

}  // namespace
}  // namespace tfinv
