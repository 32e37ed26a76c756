// Kernels of Tfinv>EmRouting and its gradient: check, allocate, call the core.
#include <string>
#include <vector>

#include "kernel.h"

namespace tfinv {
namespace {

// The inputs of both ops; null where there is no bias.
struct EmInputs {
  const float *poses, *activations, *weights, *beta_u, *beta_a, *bias;
};

struct EmGradients {
  float *poses, *activations, *weights, *beta_u, *beta_a, *bias;
};

void Forward(Cpu, OpKernelContext* ctx, const EmDims& dims, const EmInputs& in, float* outputs,
             float* output_activations, float* statistics) {
  RunOnCpu(ctx, [&](const Executor& executor) {
    EmForward(dims, in.poses, in.activations, in.weights, in.beta_u, in.beta_a, in.bias, outputs,
              output_activations, statistics, executor);
  });
}

void Backward(Cpu, OpKernelContext* ctx, const EmDims& dims, const EmInputs& in, const float* statistics,
              const float* doutputs, const float* doutput_activations, const EmGradients& d) {
  RunOnCpu(ctx, [&](const Executor& executor) {
    EmBackward(dims, in.poses, in.activations, in.weights, in.beta_u, in.beta_a, in.bias, statistics, doutputs,
               doutput_activations, d.poses, d.activations, d.weights, d.beta_u, d.beta_a, d.bias, executor);
  });
}

#ifdef TFINV_WITH_CUDA
void Forward(Gpu, OpKernelContext* ctx, const EmDims& dims, const EmInputs& in, float* outputs,
             float* output_activations, float* statistics) {
  RunOnStream(ctx, EmCudaWorkspaceBytes(dims, false), [&](void* workspace, void* stream) {
    return EmForwardCuda(dims, in.poses, in.activations, in.weights, in.beta_u, in.beta_a, in.bias, outputs,
                         output_activations, statistics, workspace, stream);
  });
}

void Backward(Gpu, OpKernelContext* ctx, const EmDims& dims, const EmInputs& in, const float* statistics,
              const float* doutputs, const float* doutput_activations, const EmGradients& d) {
  RunOnStream(ctx, EmCudaWorkspaceBytes(dims, true), [&](void* workspace, void* stream) {
    return EmBackwardCuda(dims, in.poses, in.activations, in.weights, in.beta_u, in.beta_a, in.bias,
                          statistics, doutputs, doutput_activations, d.poses, d.activations, d.weights,
                          d.beta_u, d.beta_a, d.bias, workspace, stream);
  });
}
#endif

// Attributes and the checks of the first six inputs.
class EmKernel : public OpKernel {
 protected:
  explicit EmKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    std::string variant;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("em_variant", &variant));
    variant_ = variant == "article" ? EmVariant::kArticle : EmVariant::kHinton2018;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("inverse_temperatures", &inverse_temperatures_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("variance_floor", &variance_floor_));
    OP_REQUIRES(ctx, variance_floor_ > 0.0f,
                tensorflow::errors::InvalidArgument(
                    "Invalid value for argument variance_floor. Expected a number above 0. Received: "
                    "variance_floor=",
                    variance_floor_));
  }

  TfStatus ReadDims(OpKernelContext* ctx, EmDims* dims) const {
    const Tensor &poses = ctx->input(0), &weights = ctx->input(2);
    TF_RETURN_IF_ERROR(ExpectRank("poses", poses, "[B, I, P, P]", 4));
    TF_RETURN_IF_ERROR(ExpectRank("weights", weights, "[I, J, P, P]", 4));
    TF_RETURN_IF_ERROR(ExpectSizes("weights", weights, "[I, J, P, P]"));
    const int64_t batch = poses.dim_size(0), children = weights.dim_size(0), parents = weights.dim_size(1);
    const int64_t size = weights.dim_size(2);
    if (weights.dim_size(3) != size || poses.shape() != TensorShape({batch, children, size, size})) {
      return tensorflow::errors::InvalidArgument(
          "Arguments poses [B, I, P, P] and weights [I, J, P, P] must agree in I and P. Received: "
          "poses.shape=",
          poses.shape().DebugString(), ", weights.shape=", weights.shape().DebugString());
    }
    TF_RETURN_IF_ERROR(ExpectShape("activations", ctx->input(1), "[B, I]", {batch, children}));
    TF_RETURN_IF_ERROR(ExpectShape("beta_u", ctx->input(3), "[J]", {parents}));
    TF_RETURN_IF_ERROR(ExpectShape("beta_a", ctx->input(4), "[J]", {parents}));
    *dims = {batch,    children,        parents, size, static_cast<int>(inverse_temperatures_.size()),
             variant_, variance_floor_, inverse_temperatures_.data()};
    return ExpectBias(ctx->input(5), children, parents);
  }

  static EmInputs Inputs(OpKernelContext* ctx) {
    return {Data(ctx->input(0)), Data(ctx->input(1)), Data(ctx->input(2)),
            Data(ctx->input(3)), Data(ctx->input(4)), DataOrNull(ctx->input(5))};
  }

  static TensorShape StatisticsShape(const EmDims& dims) {
    return {dims.iterations, dims.batch, dims.parents, 2 * dims.pose_size * dims.pose_size + 1};
  }

 private:
  EmVariant variant_;
  std::vector<float> inverse_temperatures_;
  float variance_floor_;
};

template <typename Device>
class EmRoutingOp : public EmKernel {
 public:
  explicit EmRoutingOp(OpKernelConstruction* ctx) : EmKernel(ctx) {}

  void Compute(OpKernelContext* ctx) override {
    EmDims dims;
    OP_REQUIRES_OK(ctx, ReadDims(ctx, &dims));
    Tensor *outputs, *output_activations, *statistics;
    OP_REQUIRES_OK(
        ctx, ctx->allocate_output(0, {dims.batch, dims.parents, dims.pose_size, dims.pose_size}, &outputs));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, {dims.batch, dims.parents}, &output_activations));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(2, StatisticsShape(dims), &statistics));
    if (dims.batch == 0) return;
    Forward(Device(), ctx, dims, Inputs(ctx), Data(outputs), Data(output_activations), Data(statistics));
  }
};

template <typename Device>
class EmRoutingGradOp : public EmKernel {
 public:
  explicit EmRoutingGradOp(OpKernelConstruction* ctx) : EmKernel(ctx) {}

  void Compute(OpKernelContext* ctx) override {
    EmDims dims;
    OP_REQUIRES_OK(ctx, ReadDims(ctx, &dims));
    const Tensor &statistics = ctx->input(6), &doutputs = ctx->input(7), &doutput_activations = ctx->input(8);
    OP_REQUIRES_OK(ctx,
                   ExpectShape("statistics", statistics, "[R, B, J, 2 P P + 1]", StatisticsShape(dims)));
    OP_REQUIRES_OK(ctx, ExpectShape("doutputs", doutputs, "[B, J, P, P]",
                                    {dims.batch, dims.parents, dims.pose_size, dims.pose_size}));
    OP_REQUIRES_OK(ctx, ExpectShape("doutput_activations", doutput_activations, "[B, J]",
                                    {dims.batch, dims.parents}));
    Tensor* gradients[6];
    for (int index = 0; index < 6; ++index) {
      OP_REQUIRES_OK(ctx, ctx->allocate_output(index, ctx->input(index).shape(), &gradients[index]));
    }
    Backward(Device(), ctx, dims, Inputs(ctx), Data(statistics), Data(doutputs), Data(doutput_activations),
             {Data(gradients[0]), Data(gradients[1]), Data(gradients[2]), Data(gradients[3]),
              Data(gradients[4]), DataOrNull(gradients[5])});
  }
};

}  // namespace

REGISTER_KERNEL_BUILDER(Name("Tfinv>EmRouting").Device(tensorflow::DEVICE_CPU), EmRoutingOp<Cpu>);
REGISTER_KERNEL_BUILDER(Name("Tfinv>EmRoutingGrad").Device(tensorflow::DEVICE_CPU), EmRoutingGradOp<Cpu>);
#ifdef TFINV_WITH_CUDA
REGISTER_KERNEL_BUILDER(Name("Tfinv>EmRouting").Device(tensorflow::DEVICE_GPU), EmRoutingOp<Gpu>);
REGISTER_KERNEL_BUILDER(Name("Tfinv>EmRoutingGrad").Device(tensorflow::DEVICE_GPU), EmRoutingGradOp<Gpu>);
#endif

}  // namespace tfinv
