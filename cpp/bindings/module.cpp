#include "module.h"

#include <pybind11/stl.h>

#include <cstdlib>

#include "lec7/isa.h"
#include "lec7/memory.h"
#include "lec7/parallel.h"

namespace py = pybind11;

namespace lec7::bindings {

bool import_numpy();

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = LEC7_VERSION;
  info["compiler"] = LEC7_COMPILER;
  info["flags"] = LEC7_FLAGS;
  info["isas_built"] = cpu::built_isas();
  info["isa"] = cpu::name(cpu::isa());
  info["openmp"] = _OPENMP;
  return info;
}

py::dict cache_info() {
  const memory::Info bytes = memory::info();
  py::dict info;
  info["in_use"] = bytes.in_use;
  info["cached"] = bytes.cached;
  info["limit"] = bytes.limit;
  return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "lec7's compiled CPU backend: the ops of lec7.ops on NumPy arrays.";
  if (!import_numpy()) throw py::error_already_set();
  if (const char* forced = std::getenv("LEC7_ISA"); forced != nullptr && *forced != '\0') cpu::set_isa(forced);

  m.def("build_info", &build_info, "Version, compiler, flags, ISAs built, ISA in use, OpenMP's version (yyyymm).");
  m.def("get_num_threads", &num_threads, "The threads that a kernel uses.");
  m.def("set_num_threads", &set_num_threads, py::arg("count"),
        "Use up to `count` threads in each kernel. A forked child always uses one.");
  m.def("cache_info", &cache_info,
        "Bytes of results in use, of freed blocks kept for reuse, and the most that are kept.");
  m.def("empty_cache", &memory::empty_cache, "Give the freed blocks back to the system.");
  m.def("set_cache_limit", &memory::set_limit, py::arg("bytes"), "Keep at most `bytes` of freed blocks.");

  // For the tests.
  m.def("_set_isa", [](const std::string& name) { cpu::set_isa(name); }, py::arg("name"));
  m.def("_isa", [] { return cpu::name(cpu::isa()); });
  m.def("_usable_isas", &cpu::usable_isas);
  m.def("_set_poison", &memory::set_poison, py::arg("on"));

  bind_ops(m);
}

}  // namespace lec7::bindings
