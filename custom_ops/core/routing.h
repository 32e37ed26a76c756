// Fused capsule routing: sizes, memory layout and entry points of the framework-free core.
//
// Axes: B batch, I child capsules, J parent capsules, K child pose, D parent pose, R iterations,
// P edge of a square pose matrix, H = P * P its components. Every array is float32, dense, row-major:
//   poses   [B, I, K]     poses[(b * I + i) * K + k]
//   weights [I, J, K, D]  weights[((i * J + j) * K + k) * D + d]
//   bias    [I, J]        initial routing logits; null for zeros
// Pointers may be null only where it is said. No argument overlaps another. Sizes are at least 1, but for
// the batch, which may be 0. Results do not depend on the number of threads.
#ifndef TFINV_CUSTOM_OPS_CORE_ROUTING_H_
#define TFINV_CUSTOM_OPS_CORE_ROUTING_H_

#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace tfinv {

// ---------------------------------------------------------------------------------------------------------
// Dynamic routing (Sabour et al. 2017, procedure 1): with votes[b,i,j] = poses[b,i] @ weights[i,j],
//   logits_t[b,i,j] = bias[i,j] + votes[b,i,j] . (v_1 + ... + v_{t-1})[b,j]
//   coupling_t      = softmax of logits_t over the parents j
//   sums_t[b,j]     = sum over i of coupling_t[b,i,j] * votes[b,i,j]
//   v_t             = squash(sums_t) = sums_t * |sums_t| / (1 + |sums_t|^2),   outputs = v_R.
// Votes exist for one child capsule and a few samples at a time, never as a tensor.

struct DynamicDims {
  int64_t batch, children, parents, child_dim, parent_dim;  // B, I, J, K, D
  int iterations;                                           // R, at least 1
};

// outputs [B, J, D]; sums [R, B, J, D], what the gradient needs to know.
void DynamicForward(const DynamicDims& dims, const float* poses, const float* weights, const float* bias,
                    float* outputs, float* sums, const Executor& executor);

// Gradients through all iterations. dbias is null where bias is.
void DynamicBackward(const DynamicDims& dims, const float* poses, const float* weights, const float* bias,
                     const float* sums, const float* doutputs, float* dposes, float* dweights, float* dbias,
                     const Executor& executor);

// ---------------------------------------------------------------------------------------------------------
// EM routing (Hinton et al. 2018, procedure 1), in log space. poses [B, I, P, P], activations [B, I],
// weights [I, J, P, P], votes[b,i,j] = poses[b,i] @ weights[i,j] (matrix product, H components):
//   logr_1[i,j] = log softmax of bias over j (-log J without); for t = 1 .. R:
//   M-step  logw[i,j] = logr_t[i,j] + log(max(activations[i], kActivationFloor))      hinton2018
//           logw[i,j] = logr_t[i,j]                                                   article
//           logmass[j] = logsumexp over i of logw[i,j];  rho[i,j] = exp(logw[i,j] - logmass[j])
//           mean[j,h]     = sum over i of rho[i,j] votes[i,j,h]
//           variance[j,h] = sum over i of rho[i,j] (votes[i,j,h] - mean[j,h])^2 + variance_floor
//           x[j] = inverse_temperature[t] *
//                  (beta_a[j] - exp(logmass[j]) * (beta_u[j] + 1/2 sum over h of log variance[j,h]))
//           loga[j] = log sigmoid of x[j]  (hinton2018), log softmax of x over j  (article)
//   E-step  (t < R) logits[i,j] = loga[j] - 1/2 sum over h of ((votes - mean)^2 / variance + log variance)
//           logr_{t+1} = log softmax of logits over j
//   outputs: mean_R and exp(loga_R). The constant log(2 pi) cancels in the softmax.
// beta_u here is the sum over the H components of the paper's beta_u. The gradient of the activation
// floor is 0 below it.

enum class EmVariant : int { kHinton2018 = 0, kArticle = 1 };

constexpr float kActivationFloor = 1e-12f;

struct EmDims {
  int64_t batch, children, parents, pose_size;  // B, I, J, P
  int iterations;                               // R, at least 1
  EmVariant variant;
  float variance_floor;                // added to each variance; above 0
  const float* inverse_temperatures;   // [R], host memory
};

// outputs [B, J, P, P], output_activations [B, J];
// statistics [R, B, J, 2 H + 1], what the gradient needs to know: H means, H variances, logmass.
void EmForward(const EmDims& dims, const float* poses, const float* activations, const float* weights,
               const float* beta_u, const float* beta_a, const float* bias, float* outputs,
               float* output_activations, float* statistics, const Executor& executor);

// dbias is null where bias is. dbeta_u is the gradient of the sum that beta_u holds.
void EmBackward(const EmDims& dims, const float* poses, const float* activations, const float* weights,
                const float* beta_u, const float* beta_a, const float* bias, const float* statistics,
                const float* doutputs, const float* doutput_activations, float* dposes,
                float* dactivations, float* dweights, float* dbeta_u, float* dbeta_a, float* dbias,
                const Executor& executor);

// The instruction set chosen at run time: "avx512", "avx2" or "baseline". The environment variable
// TFINV_ISA names another of the compiled ones (for tests); an unknown or unsupported one is ignored.
const char* CpuIsa();

// ---------------------------------------------------------------------------------------------------------
// The same four on a CUDA device: pointers to device memory (but for the struct), results on `stream`
// (a cudaStream_t). `workspace` is device memory of the size the ...WorkspaceBytes function names. They
// return null, or a static message if a launch was refused. In a build without CUDA they do not exist.

size_t DynamicCudaWorkspaceBytes(const DynamicDims& dims, bool backward);
const char* DynamicForwardCuda(const DynamicDims& dims, const float* poses, const float* weights,
                               const float* bias, float* outputs, float* sums, void* workspace, void* stream);
const char* DynamicBackwardCuda(const DynamicDims& dims, const float* poses, const float* weights,
                                const float* bias, const float* sums, const float* doutputs, float* dposes,
                                float* dweights, float* dbias, void* workspace, void* stream);

size_t EmCudaWorkspaceBytes(const EmDims& dims, bool backward);
const char* EmForwardCuda(const EmDims& dims, const float* poses, const float* activations,
                          const float* weights, const float* beta_u, const float* beta_a, const float* bias,
                          float* outputs, float* output_activations, float* statistics, void* workspace,
                          void* stream);
const char* EmBackwardCuda(const EmDims& dims, const float* poses, const float* activations,
                           const float* weights, const float* beta_u, const float* beta_a, const float* bias,
                           const float* statistics, const float* doutputs, const float* doutput_activations,
                           float* dposes, float* dactivations, float* dweights, float* dbeta_u,
                           float* dbeta_a, float* dbias, void* workspace, void* stream);

}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_ROUTING_H_
