// Compiled once for each instruction set, with TFINV_ISA its name and the compiler flags that go with it.
#include <cstddef>
#include <cstdint>

#include "cpu_kernels.h"

namespace tfinv {
namespace TFINV_ISA {
namespace {
#include "simd.h"
#include "tiles.inc"
#include "scatter_cpu.inc"
#include "dynamic_cpu.inc"
#include "em_steps.inc"
#include "em_cpu.inc"
}  // namespace

extern const CpuKernels kKernels;
const CpuKernels kKernels = {kLanes,         kVectorsAtOnce, PackValues,       RouteScratch,   SumVotes,
                             Route,          Agree,          ScatterScratch,   Scatter,        EmForwardScratch,
                             EmForwardBlock, EmBackwardScratch, EmBackwardBlock};

}  // namespace TFINV_ISA
}  // namespace tfinv
