// What Python asks a loaded library of any binding, through ctypes.
#include "core/buffer.h"
#include "core/routing.h"

// The instruction set that the CPU kernels run on: "baseline", "avx2" or "avx512".
extern "C" __attribute__((visibility("default"))) const char* tfinv_cpu_isa() { return tfinv::CpuIsa(); }

// Bytes that the CPU kernels keep for their next call.
extern "C" __attribute__((visibility("default"))) size_t tfinv_kept_bytes() {
  return tfinv::KeptBlocks::Instance().Bytes();
}
