// What the kernels of both routings share: checks of shapes, pointers, and the two devices.
#ifndef TFINV_CUSTOM_OPS_TENSORFLOW_KERNEL_H_
#define TFINV_CUSTOM_OPS_TENSORFLOW_KERNEL_H_

#include <functional>
#include <new>
#include <utility>

#include "core/routing.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"
#include "tensorflow/core/platform/errors.h"

#ifdef TFINV_WITH_CUDA
#include "xla/stream_executor/stream.h"
#endif

namespace tfinv {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using TfStatus = tensorflow::Status;

struct Cpu {};
struct Gpu {};

// Returns an error unless `tensor` has the shape; `axes` names it, as in "[I, J]".
inline TfStatus ExpectShape(const char* name, const Tensor& tensor, const char* axes, const TensorShape& shape) {
  if (tensor.shape() == shape) return TfStatus();
  return tensorflow::errors::InvalidArgument("Invalid shape of argument ", name, ". Expected ", axes, " = ",
                                             shape.DebugString(), ". Received: ", name,
                                             ".shape=", tensor.shape().DebugString());
}

inline TfStatus ExpectRank(const char* name, const Tensor& tensor, const char* axes, int rank) {
  if (tensor.dims() == rank) return TfStatus();
  return tensorflow::errors::InvalidArgument("Invalid shape of argument ", name, ". Expected ", axes,
                                             ". Received: ", name, ".shape=", tensor.shape().DebugString());
}

// Only the batch may be 0: a softmax over no parent, or a sum over no child, has no meaning.
inline TfStatus ExpectSizes(const char* name, const Tensor& tensor, const char* axes) {
  if (tensor.NumElements() > 0) return TfStatus();
  return tensorflow::errors::InvalidArgument("Invalid shape of argument ", name, ". Expected ", axes,
                                             ", each at least 1. Received: ", name,
                                             ".shape=", tensor.shape().DebugString());
}

// bias is [I, J], or [0, 0] for none.
inline TfStatus ExpectBias(const Tensor& bias, int64_t children, int64_t parents) {
  if (bias.shape() == TensorShape({0, 0})) return TfStatus();
  return ExpectShape("bias", bias, "[I, J]", {children, parents});
}

inline const float* Data(const Tensor& tensor) { return tensor.flat<float>().data(); }
inline const float* DataOrNull(const Tensor& tensor) { return tensor.NumElements() ? Data(tensor) : nullptr; }
inline float* Data(Tensor* tensor) { return tensor->flat<float>().data(); }
inline float* DataOrNull(Tensor* tensor) { return tensor->NumElements() ? Data(tensor) : nullptr; }

// Calls run(executor) with the threads that TensorFlow lends; lack of memory fails the op, not the process.
template <typename Run>
void RunOnCpu(OpKernelContext* ctx, const Run& run) {
  const auto& workers = *ctx->device()->tensorflow_cpu_worker_threads();
  const auto schedule = [pool = workers.workers](std::function<void()> work) { pool->Schedule(std::move(work)); };
  try {
    run(Executor{workers.num_threads, schedule});
  } catch (const std::bad_alloc&) {
    ctx->CtxFailure(tensorflow::errors::ResourceExhausted("Out of memory in a routing op. Use a smaller batch."));
  }
}

#ifdef TFINV_WITH_CUDA
// Calls launch(workspace, stream) with `bytes` of device memory; a refused launch fails the op.
template <typename Launch>
void RunOnStream(OpKernelContext* ctx, size_t bytes, const Launch& launch) {
  Tensor workspace;
  OP_REQUIRES_OK(ctx, ctx->allocate_temp(tensorflow::DT_UINT8, TensorShape({static_cast<int64_t>(bytes)}),
                                         &workspace));
  void* stream = ctx->op_device_context()->stream()->platform_specific_handle().stream;
  const char* error = launch(bytes ? workspace.data() : nullptr, stream);
  OP_REQUIRES(ctx, error == nullptr, tensorflow::errors::Internal("Routing on the GPU failed: ", error));
}
#endif

}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_TENSORFLOW_KERNEL_H_
