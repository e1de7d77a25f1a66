// One loop body, one build for each instruction set.
//
// Every file in cpp/cpu is compiled once for each ISA, into the namespace lec7::cpu::<isa>. A kernel is
// declared in all of them with LEC7_KERNELS and called through LEC7_PICK, which takes the best one that
// the processor can run (or the one that LEC7_ISA names).
//
// The CUDA backend compiles the same declarations, shape rules and bindings with LEC7_BACKEND_CUDA: there the two mean
// the kernels of cuda/, on device memory, for float32 and, of some ops, float16 and bfloat16.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lec7::cpu {

enum class Isa { baseline, avx2, avx512 };

Isa isa();                               // in use
const char* name(Isa isa);               // "baseline", "avx2", "avx512"
std::vector<std::string> built_isas();   // worst first
std::vector<std::string> usable_isas();  // of those, the ones that this processor runs
void set_isa(std::string_view name);     // throws std::invalid_argument

}  // namespace lec7::cpu

#if defined(LEC7_BACKEND_CUDA)
#define LEC7_KERNELS(...) \
  namespace lec7::cuda {  \
  __VA_ARGS__             \
  }
#define LEC7_PICK(kernel) (&::lec7::cuda::kernel)
#elif defined(LEC7_BUILD_X86)
#define LEC7_KERNELS(...)         \
  namespace lec7::cpu::baseline { \
  __VA_ARGS__                     \
  }                               \
  namespace lec7::cpu::avx2 {     \
  __VA_ARGS__                     \
  }                               \
  namespace lec7::cpu::avx512 {   \
  __VA_ARGS__                     \
  }
#define LEC7_PICK(kernel)                                                        \
  (::lec7::cpu::isa() == ::lec7::cpu::Isa::avx512 ? &::lec7::cpu::avx512::kernel \
   : ::lec7::cpu::isa() == ::lec7::cpu::Isa::avx2 ? &::lec7::cpu::avx2::kernel   \
                                                  : &::lec7::cpu::baseline::kernel)
#else
#define LEC7_KERNELS(...)         \
  namespace lec7::cpu::baseline { \
  __VA_ARGS__                     \
  }
#define LEC7_PICK(kernel) (&::lec7::cpu::baseline::kernel)
#endif
