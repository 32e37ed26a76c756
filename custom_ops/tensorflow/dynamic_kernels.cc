// Kernels of Tfinv>DynamicRouting and its gradient: check, allocate, call the core.
#include "kernel.h"

namespace tfinv {
namespace {

void Forward(Cpu, OpKernelContext* ctx, const DynamicDims& dims, const float* poses, const float* weights,
             const float* bias, float* outputs, float* sums) {
  RunOnCpu(ctx, [&](const Executor& executor) {
    DynamicForward(dims, poses, weights, bias, outputs, sums, executor);
  });
}

void Backward(Cpu, OpKernelContext* ctx, const DynamicDims& dims, const float* poses, const float* weights,
              const float* bias, const float* sums, const float* doutputs, float* dposes, float* dweights,
              float* dbias) {
  RunOnCpu(ctx, [&](const Executor& executor) {
    DynamicBackward(dims, poses, weights, bias, sums, doutputs, dposes, dweights, dbias, executor);
  });
}

#ifdef TFINV_WITH_CUDA
void Forward(Gpu, OpKernelContext* ctx, const DynamicDims& dims, const float* poses, const float* weights,
             const float* bias, float* outputs, float* sums) {
  RunOnStream(ctx, DynamicCudaWorkspaceBytes(dims, false), [&](void* workspace, void* stream) {
    return DynamicForwardCuda(dims, poses, weights, bias, outputs, sums, workspace, stream);
  });
}

void Backward(Gpu, OpKernelContext* ctx, const DynamicDims& dims, const float* poses, const float* weights,
              const float* bias, const float* sums, const float* doutputs, float* dposes, float* dweights,
              float* dbias) {
  RunOnStream(ctx, DynamicCudaWorkspaceBytes(dims, true), [&](void* workspace, void* stream) {
    return DynamicBackwardCuda(dims, poses, weights, bias, sums, doutputs, dposes, dweights, dbias, workspace,
                               stream);
  });
}
#endif

// Checks the first three inputs and reads the sizes off them.
TfStatus ReadDims(OpKernelContext* ctx, int iterations, DynamicDims* dims) {
  const Tensor &poses = ctx->input(0), &weights = ctx->input(1), &bias = ctx->input(2);
  TF_RETURN_IF_ERROR(ExpectRank("poses", poses, "[B, I, K]", 3));
  TF_RETURN_IF_ERROR(ExpectRank("weights", weights, "[I, J, K, D]", 4));
  TF_RETURN_IF_ERROR(ExpectSizes("weights", weights, "[I, J, K, D]"));
  *dims = {poses.dim_size(0),   weights.dim_size(0), weights.dim_size(1),
           weights.dim_size(2), weights.dim_size(3), iterations};
  if (poses.dim_size(1) != dims->children || poses.dim_size(2) != dims->child_dim) {
    return tensorflow::errors::InvalidArgument(
        "Arguments poses [B, I, K] and weights [I, J, K, D] must agree in I and K. Received: poses.shape=",
        poses.shape().DebugString(), ", weights.shape=", weights.shape().DebugString());
  }
  return ExpectBias(bias, dims->children, dims->parents);
}

template <typename Device>
class DynamicRoutingOp : public OpKernel {
 public:
  explicit DynamicRoutingOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("iterations", &iterations_));
  }

  void Compute(OpKernelContext* ctx) override {
    DynamicDims dims;
    OP_REQUIRES_OK(ctx, ReadDims(ctx, iterations_, &dims));
    Tensor *outputs, *sums;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, {dims.batch, dims.parents, dims.parent_dim}, &outputs));
    OP_REQUIRES_OK(
        ctx, ctx->allocate_output(1, {iterations_, dims.batch, dims.parents, dims.parent_dim}, &sums));
    if (dims.batch == 0) return;
    Forward(Device(), ctx, dims, Data(ctx->input(0)), Data(ctx->input(1)), DataOrNull(ctx->input(2)),
            Data(outputs), Data(sums));
  }

 private:
  int iterations_;
};

template <typename Device>
class DynamicRoutingGradOp : public OpKernel {
 public:
  explicit DynamicRoutingGradOp(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("iterations", &iterations_));
  }

  void Compute(OpKernelContext* ctx) override {
    DynamicDims dims;
    OP_REQUIRES_OK(ctx, ReadDims(ctx, iterations_, &dims));
    const Tensor &sums = ctx->input(3), &doutputs = ctx->input(4);
    OP_REQUIRES_OK(ctx, ExpectShape("sums", sums, "[R, B, J, D]",
                                    {iterations_, dims.batch, dims.parents, dims.parent_dim}));
    OP_REQUIRES_OK(ctx, ExpectShape("doutputs", doutputs, "[B, J, D]",
                                    {dims.batch, dims.parents, dims.parent_dim}));
    Tensor *dposes, *dweights, *dbias;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, ctx->input(0).shape(), &dposes));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, ctx->input(1).shape(), &dweights));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(2, ctx->input(2).shape(), &dbias));
    Backward(Device(), ctx, dims, Data(ctx->input(0)), Data(ctx->input(1)), DataOrNull(ctx->input(2)),
             Data(sums), Data(doutputs), Data(dposes), Data(dweights), DataOrNull(dbias));
  }

 private:
  int iterations_;
};

}  // namespace

REGISTER_KERNEL_BUILDER(Name("Tfinv>DynamicRouting").Device(tensorflow::DEVICE_CPU), DynamicRoutingOp<Cpu>);
REGISTER_KERNEL_BUILDER(Name("Tfinv>DynamicRoutingGrad").Device(tensorflow::DEVICE_CPU),
                        DynamicRoutingGradOp<Cpu>);
#ifdef TFINV_WITH_CUDA
REGISTER_KERNEL_BUILDER(Name("Tfinv>DynamicRouting").Device(tensorflow::DEVICE_GPU), DynamicRoutingOp<Gpu>);
REGISTER_KERNEL_BUILDER(Name("Tfinv>DynamicRoutingGrad").Device(tensorflow::DEVICE_GPU),
                        DynamicRoutingGradOp<Gpu>);
#endif

}  // namespace tfinv
