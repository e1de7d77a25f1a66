#include "lec7/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace lec7::cpu {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512};

bool built(Isa isa) {
#if defined(LEC7_BUILD_X86)
  return isa == Isa::baseline || isa == Isa::avx2 || isa == Isa::avx512;
#else
  return isa == Isa::baseline;
#endif
}

bool usable(Isa isa) {
  if (!built(isa)) return false;
#if defined(LEC7_BUILD_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx2 && avx512;
#endif
  return true;
}

Isa parse(std::string_view text) {
  for (Isa isa : kAll) {
    if (text == name(isa)) {
      if (!usable(isa)) {
        throw std::invalid_argument("LEC7_ISA: " + std::string(text) +
                                    (built(isa) ? " is not supported by this processor" : " is not in this build"));
      }
      return isa;
    }
  }
  throw std::invalid_argument("LEC7_ISA: \"" + std::string(text) + "\" is not one of baseline, avx2, avx512");
}

Isa best() {
  Isa chosen = Isa::baseline;
  for (Isa isa : kAll) {
    if (usable(isa)) chosen = isa;
  }
  return chosen;
}

std::atomic<Isa> current{best()};

template <class Predicate>
std::vector<std::string> names_where(Predicate predicate) {
  std::vector<std::string> names;
  for (Isa isa : kAll) {
    if (predicate(isa)) names.emplace_back(name(isa));
  }
  return names;
}

}  // namespace

Isa isa() { return current.load(std::memory_order_relaxed); }

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    default: return "baseline";
  }
}

std::vector<std::string> built_isas() { return names_where(built); }
std::vector<std::string> usable_isas() { return names_where(usable); }
void set_isa(std::string_view text) { current = parse(text); }

}  // namespace lec7::cpu
