// What the drivers (dynamic_cpu.cpp, em_cpu.cpp; compiled once) ask of the kernels (*.inc; compiled once for
// each instruction set by cpu_isa.cpp).
//
// The kernels work on several samples at once, one a lane of a vector (but for `scatter`): no reduction crosses
// lanes, and any I, J, K, D fills the vectors. Samples [B, ...] are packed to
//   packed [vector][...][lane],  sample b = vector * lanes + lane,
// lanes past the end are 0. A packed state of J * D values a sample has `state_stride` floats a vector, a little
// more than J * D * lanes: neighbouring vectors must not share the low bits of their addresses.
#ifndef TFINV_CUSTOM_OPS_CORE_CPU_KERNELS_H_
#define TFINV_CUSTOM_OPS_CORE_CPU_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace tfinv {

constexpr size_t kAlignment = 64;    // bytes; a cache line, and the widest vector
constexpr int64_t kPad = 16;         // floats between two vectors of a state

// The gradient takes children eight at a time, parent by parent.
constexpr int64_t kChildrenTogether = 8;

// One pass over some children (first_child <= i < last_child) of some samples.
struct DynamicPass {
  int64_t children, parents, child_dim, parent_dim;  // I, J, K, D
  int64_t first_child, last_child;
  int64_t vectors;          // of samples, at most vectors_at_once
  int64_t samples;          // in them
  const float* poses;       // packed [vector][I][K][lane]
  const float* weights;     // [I, J, K, D]
  const float* bias;        // [I, J] or null
  int64_t state_stride;     // floats from one vector to the next in the states below
  const float* agreed;      // packed [J, D]: v_1 + ... + v_{t-1}
  const float* dsums;       // packed [J, D]: gradient of sums_t
  float* partial;           // packed [J, D]: the pass's sum over its children
  // Written by `agree`: coupling_t and, behind it, the gradient of logits_t, for each pair and vector,
  //   [I / kChildrenTogether][vector][J][kChildrenTogether][iteration][2][lane]
  // from this vector and iteration on: a task of `agree` writes, and `scatter` reads, long runs.
  float* coefficients;
  int64_t pair_stride;        // floats from one child to the next of those together
  int64_t vector_stride;      // floats from one vector to the next
  int64_t together_stride;    // floats from one group of children to the next
  float* scratch;           // of at least the floats that route_scratch or scatter_scratch tells
};

static inline __attribute__((always_inline)) float* CoefficientsOf(const DynamicPass& pass, int64_t child,
                                                                  int64_t parent) {
  return pass.coefficients + child / kChildrenTogether * pass.together_stride +
         (parent * kChildrenTogether + child % kChildrenTogether) * pass.pair_stride;
}

// The last pass of the gradient: all iterations of a range of children and all samples of a block.
struct DynamicScatter {
  DynamicPass pass;             // sizes, children, poses [samples, I, K] (not packed), weights, coefficients, scratch
  int64_t samples;
  // What dvotes adds up, side by side: [J][samples][state_count][D], D padded to whole vectors. States are dsums_1
  // of a uniform start (no bias), then dsums_t and agreed_t of each iteration that has coefficients.
  const float* states;
  int64_t state_count, terms;   // `terms` of the states have coefficients: all, or all but the first
  bool accumulate;              // add to dweights and dbias instead of writing them
  float* dposes;                // [samples, I, K]
  float* dweights;              // [I, J, K, D]
  float* dbias;                 // [I, J] or null
};

// EM routing of one vector of samples, through all iterations. Its arrays are packed, [...][lane], and in the
// scratch of the task; H = P * P.
struct EmBlock {
  int64_t children, parents, pose_size;  // I, J, P
  int iterations;
  bool hinton2018;                    // else the article's variant
  float variance_floor, activation_floor;
  const float* inverse_temperatures;  // [R]
  const float* poses;                 // [I, P, P]
  const float* activations;           // [I]
  const float* weights;               // [I, J, P, P], not packed
  const float* beta_u;                // [J], not packed
  const float* beta_a;                // [J], not packed
  const float* first_logr;            // [I, J], not packed: log softmax of bias over the parents
  float* statistics;                  // [R, J, 2 H + 1]: written forward, read backward
  float* output_activations;          // [J]: written forward
  // Backward only. What is summed over samples is not packed and added to.
  const float* doutputs;              // [J, P, P]
  const float* doutput_activations;   // [J]
  float* dposes;                      // [I, P, P]
  float* dactivations;                // [I]
  float* dweights;                    // [I, J, P, P]
  float* dbeta_u;                     // [J]
  float* dbeta_a;                     // [J]
  float* dbias;                       // [I, J] or null
  float* scratch;
};

struct CpuKernels {
  int64_t lanes;
  int64_t vectors_at_once;                              // of samples that a routing task takes
  // Packs values [begin, end) of samples [count, size], at most `lanes` of them, to [size][lane].
  void (*pack)(const float* samples, int64_t count, int64_t size, int64_t begin, int64_t end, float* packed);
  size_t (*route_scratch)(const DynamicPass&);          // floats, for the next three
  void (*sum_votes)(const DynamicPass&);                // partial = sum of votes
  void (*route)(const DynamicPass&);                    // partial = sum of coupling * votes
  void (*agree)(const DynamicPass&);                    // coupling, dlogits; partial = sum of dlogits * votes
  size_t (*scatter_scratch)(const DynamicScatter&);     // floats
  void (*scatter)(const DynamicScatter&);               // dposes, dweights, dbias
  size_t (*em_forward_scratch)(const EmBlock&);         // floats
  void (*em_forward)(const EmBlock&);
  size_t (*em_backward_scratch)(const EmBlock&);        // floats
  void (*em_backward)(const EmBlock&);
};

// The kernels of the instruction set chosen at run time.
const CpuKernels& Kernels();

}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_CPU_KERNELS_H_
