// What Python asks a loaded library of any binding, through ctypes.
#include "core/routing.h"

// The instruction set that the CPU kernels run on: "baseline", "avx2" or "avx512".
extern "C" __attribute__((visibility("default"))) const char* tfinv_cpu_isa() { return tfinv::CpuIsa(); }
