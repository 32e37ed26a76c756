// The ops as TensorFlow's graphs see them: names, inputs, attributes and shapes.
//
// Shape functions merge what the inputs know about each other. They are no check: sizes unknown in a graph
// are known to the kernels only, which check everything again.
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfinv {
namespace {

using tensorflow::Status;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// What both kinds of routing share: poses [B, I, ...], weights [I, J, ...], bias [I, J] or [0, 0].
struct Common {
  ShapeHandle poses, weights, bias;
  DimensionHandle batch, children, parents;
};

Status MergeCommon(InferenceContext* c, int poses, int poses_rank, int weights, int bias, Common* common) {
  TF_RETURN_IF_ERROR(c->WithRank(c->input(poses), poses_rank, &common->poses));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(weights), 4, &common->weights));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(bias), 2, &common->bias));
  common->batch = c->Dim(common->poses, 0);
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(common->poses, 1), c->Dim(common->weights, 0), &common->children));
  common->parents = c->Dim(common->weights, 1);
  const DimensionHandle rows = c->Dim(common->bias, 0);
  if (c->ValueKnown(rows) && c->Value(rows) != 0) {
    TF_RETURN_IF_ERROR(c->Merge(common->children, rows, &common->children));
    TF_RETURN_IF_ERROR(c->Merge(common->parents, c->Dim(common->bias, 1), &common->parents));
  }
  return Status();
}

Status DynamicShapes(InferenceContext* c, Common* common, DimensionHandle* child_dim) {
  TF_RETURN_IF_ERROR(MergeCommon(c, 0, 3, 1, 2, common));
  return c->Merge(c->Dim(common->poses, 2), c->Dim(common->weights, 2), child_dim);
}

Status DynamicShape(InferenceContext* c) {
  Common common;
  DimensionHandle child_dim;
  TF_RETURN_IF_ERROR(DynamicShapes(c, &common, &child_dim));
  int iterations;
  TF_RETURN_IF_ERROR(c->GetAttr("iterations", &iterations));
  const DimensionHandle parent_dim = c->Dim(common.weights, 3);
  c->set_output(0, c->MakeShape({common.batch, common.parents, parent_dim}));
  c->set_output(1, c->MakeShape({c->MakeDim(iterations), common.batch, common.parents, parent_dim}));
  return Status();
}

Status DynamicGradShape(InferenceContext* c) {
  Common common;
  DimensionHandle child_dim;
  TF_RETURN_IF_ERROR(DynamicShapes(c, &common, &child_dim));
  c->set_output(0, c->MakeShape({common.batch, common.children, child_dim}));
  c->set_output(1, c->MakeShape({common.children, common.parents, child_dim, c->Dim(common.weights, 3)}));
  c->set_output(2, common.bias);
  return Status();
}

Status EmShapes(InferenceContext* c, Common* common, DimensionHandle* size) {
  TF_RETURN_IF_ERROR(MergeCommon(c, 0, 4, 2, 5, common));
  ShapeHandle activations, beta;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &activations));
  TF_RETURN_IF_ERROR(c->Merge(common->batch, c->Dim(activations, 0), &common->batch));
  TF_RETURN_IF_ERROR(c->Merge(common->children, c->Dim(activations, 1), &common->children));
  for (const int input : {3, 4}) {
    TF_RETURN_IF_ERROR(c->WithRank(c->input(input), 1, &beta));
    TF_RETURN_IF_ERROR(c->Merge(common->parents, c->Dim(beta, 0), &common->parents));
  }
  *size = c->Dim(common->poses, 2);
  for (const DimensionHandle other :
       {c->Dim(common->poses, 3), c->Dim(common->weights, 2), c->Dim(common->weights, 3)}) {
    TF_RETURN_IF_ERROR(c->Merge(*size, other, size));
  }
  return Status();
}

Status EmShape(InferenceContext* c) {
  Common common;
  DimensionHandle size, components;
  TF_RETURN_IF_ERROR(EmShapes(c, &common, &size));
  std::vector<float> inverse_temperatures;
  TF_RETURN_IF_ERROR(c->GetAttr("inverse_temperatures", &inverse_temperatures));
  TF_RETURN_IF_ERROR(c->Multiply(size, size, &components));
  TF_RETURN_IF_ERROR(c->Multiply(components, 2, &components));
  TF_RETURN_IF_ERROR(c->Add(components, 1, &components));
  c->set_output(0, c->MakeShape({common.batch, common.parents, size, size}));
  c->set_output(1, c->MakeShape({common.batch, common.parents}));
  const DimensionHandle iterations = c->MakeDim(static_cast<int64_t>(inverse_temperatures.size()));
  c->set_output(2, c->MakeShape({iterations, common.batch, common.parents, components}));
  return Status();
}

Status EmGradShape(InferenceContext* c) {
  Common common;
  DimensionHandle size;
  TF_RETURN_IF_ERROR(EmShapes(c, &common, &size));
  c->set_output(0, c->MakeShape({common.batch, common.children, size, size}));
  c->set_output(1, c->MakeShape({common.batch, common.children}));
  c->set_output(2, c->MakeShape({common.children, common.parents, size, size}));
  c->set_output(3, c->MakeShape({common.parents}));
  c->set_output(4, c->MakeShape({common.parents}));
  c->set_output(5, common.bias);
  return Status();
}

}  // namespace

REGISTER_OP("Tfinv>DynamicRouting")
    .Input("poses: float")
    .Input("weights: float")
    .Input("bias: float")
    .Attr("iterations: int >= 1")
    .Output("outputs: float")
    .Output("sums: float")
    .SetShapeFn(DynamicShape)
    .Doc("Dynamic routing of poses [B, I, K] by weights [I, J, K, D]; bias [I, J], or [0, 0] for none.");

REGISTER_OP("Tfinv>DynamicRoutingGrad")
    .Input("poses: float")
    .Input("weights: float")
    .Input("bias: float")
    .Input("sums: float")
    .Input("doutputs: float")
    .Attr("iterations: int >= 1")
    .Output("dposes: float")
    .Output("dweights: float")
    .Output("dbias: float")
    .SetShapeFn(DynamicGradShape)
    .Doc("Gradients of Tfinv>DynamicRouting through all iterations.");

#define TFINV_EM_ATTRIBUTES                    \
  Attr("em_variant: {'hinton2018', 'article'}")   \
      .Attr("inverse_temperatures: list(float) >= 1") \
      .Attr("variance_floor: float")

REGISTER_OP("Tfinv>EmRouting")
    .Input("poses: float")
    .Input("activations: float")
    .Input("weights: float")
    .Input("beta_u: float")
    .Input("beta_a: float")
    .Input("bias: float")
    .TFINV_EM_ATTRIBUTES
    .Output("outputs: float")
    .Output("output_activations: float")
    .Output("statistics: float")
    .SetShapeFn(EmShape)
    .Doc("EM routing of poses [B, I, P, P] by weights [I, J, P, P]; bias [I, J], or [0, 0] for none.");

REGISTER_OP("Tfinv>EmRoutingGrad")
    .Input("poses: float")
    .Input("activations: float")
    .Input("weights: float")
    .Input("beta_u: float")
    .Input("beta_a: float")
    .Input("bias: float")
    .Input("statistics: float")
    .Input("doutputs: float")
    .Input("doutput_activations: float")
    .TFINV_EM_ATTRIBUTES
    .Output("dposes: float")
    .Output("dactivations: float")
    .Output("dweights: float")
    .Output("dbeta_u: float")
    .Output("dbeta_a: float")
    .Output("dbias: float")
    .SetShapeFn(EmGradShape)
    .Doc("Gradients of Tfinv>EmRouting through all iterations.");

}  // namespace tfinv
