// Chooses the instruction set, once a process. TFINV_WITH_AVX2 and TFINV_WITH_AVX512 say which are linked.
#include <cstdlib>
#include <cstring>

#include "cpu_kernels.h"
#include "routing.h"

namespace tfinv {
namespace baseline {
extern const CpuKernels kKernels;
}
#ifdef TFINV_WITH_AVX2
namespace avx2 {
extern const CpuKernels kKernels;
}
#endif
#ifdef TFINV_WITH_AVX512
namespace avx512 {
extern const CpuKernels kKernels;
}
#endif

namespace {

struct Isa {
  const char* name;
  const CpuKernels* kernels;
};

Isa Choose() {
  const char* wanted = std::getenv("TFINV_ISA");
  // From best to plainest; the name asked for wins if the machine has it.
  Isa best = {"baseline", &baseline::kKernels};
  auto consider = [&](bool supported, Isa isa) {
    if (supported && !(wanted && std::strcmp(wanted, best.name) == 0)) best = isa;
  };
#ifdef TFINV_WITH_AVX2
  consider(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), {"avx2", &avx2::kKernels});
#endif
#ifdef TFINV_WITH_AVX512
  consider(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"),
           {"avx512", &avx512::kKernels});
#endif
  (void)consider;
  return best;
}

const Isa& Chosen() {
  static const Isa isa = Choose();
  return isa;
}

}  // namespace

const CpuKernels& Kernels() { return *Chosen().kernels; }
const char* CpuIsa() { return Chosen().name; }

}  // namespace tfinv
