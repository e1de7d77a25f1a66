// Which build of the kernels runs.
#include "lec7/isa.h"

#include <algorithm>
#include <stdexcept>

#include "check.h"
#include "lec7/activation.h"
#include "lec7/linear.h"

namespace lec7::test {
namespace {

const std::string& best() {
  static const std::string name = cpu::name(cpu::isa());  // before a test sets another
  return name;
}

TEST(the_best_usable_isa_is_the_default) {
  const std::vector<std::string> built = cpu::built_isas(), usable = cpu::usable_isas();
  check_equal(built.front(), "baseline");
  check_equal(usable.front(), "baseline");
  check_equal(usable.back(), best());
  for (const std::string& isa : usable) CHECK(std::count(built.begin(), built.end(), isa) == 1);
}

TEST(a_set_isa_is_the_one_that_runs) {
  std::vector<const void*> kernels;
  for (const std::string& isa : cpu::usable_isas()) {
    cpu::set_isa(isa);
    check_equal(cpu::name(cpu::isa()), isa);
    kernels.push_back(reinterpret_cast<const void*>(LEC7_PICK(activation_forward<float>)));
    CHECK(std::count(kernels.begin(), kernels.end(), kernels.back()) == 1);
  }
  cpu::set_isa(best());
}

TEST(other_names_are_refused) {
  for (const std::string name : {"", "sse2", "AVX2", "avx512 ", "avx"}) {
    check_equal(thrown<std::invalid_argument>([&] { cpu::set_isa(name); }),
                "LEC7_ISA: \"" + name + "\" is not one of baseline, avx2, avx512");
  }
  const std::vector<std::string> built = cpu::built_isas(), usable = cpu::usable_isas();
  for (const std::string name : {"avx2", "avx512"}) {
    if (std::count(usable.begin(), usable.end(), name) > 0) continue;
    const bool is_built = std::count(built.begin(), built.end(), name) > 0;
    check_equal(thrown<std::invalid_argument>([&] { cpu::set_isa(name); }),
                "LEC7_ISA: " + name + (is_built ? " is not supported by this processor" : " is not in this build"));
  }
  check_equal(cpu::name(cpu::isa()), best());
}

}  // namespace
}  // namespace lec7::test
