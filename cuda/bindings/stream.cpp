#include "stream.h"

#include <bit>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../lengths.h"
#include "../runtime.h"
#include "device_array.h"

namespace py = pybind11;

namespace lec7::bindings {
namespace {

using cuda::check;

// A stream of its own; `with stream:` makes it the current one of the thread.
class Stream {
 public:
  cudaStream_t handle() const { return stream_.get(); }
  void enter() {
    before_.push_back(cuda::shared_current_stream());
    cuda::set_current_stream(stream_);
  }
  void exit() {
    if (before_.empty()) throw std::runtime_error("lec7.cuda.Stream: it was not entered");
    cuda::set_current_stream(before_.back());
    before_.pop_back();
  }
  void synchronize() const {
    const cuda::Stream before = cuda::shared_current_stream();
    cuda::set_current_stream(stream_);
    try {
      cuda::synchronize();
    } catch (...) {
      cuda::set_current_stream(before);
      throw;
    }
    cuda::set_current_stream(before);
  }

 private:
  cuda::Stream stream_ = cuda::new_stream();
  std::vector<cuda::Stream> before_;
};

// The graph whose `with` block this thread is in.
thread_local py::handle recorder;

py::object recording() {
  if (!recorder || !cuda::capturing()) return py::none();
  return py::reinterpret_borrow<py::object>(recorder);
}

// What is launched inside `with graph:` is recorded, not run; replay() asks the host for its numbers of this time, and
// runs all of it again, on the same memory.
class Graph {
 public:
  Graph() { check(cudaEventCreateWithFlags(&replayed_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
  ~Graph() {
    cudaEventDestroy(replayed_);
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }
  static void enter(const py::object& self) { py::cast<Graph&>(self).begin(self); }
  void exit(bool keep) {
    recorder = outer_;
    cudaGraph_t graph = nullptr;
    const cudaError_t error = cudaStreamEndCapture(stream_.handle(), &graph);
    stream_.exit();
    if (!keep) {  // an exception goes on: what was recorded until then is dropped
      if (error == cudaSuccess) cudaGraphDestroy(graph);
      return;
    }
    check(error, "cudaStreamEndCapture");
    const cudaError_t made = cudaGraphInstantiate(&executable_, graph, cudaGraphInstantiateFlagAutoFreeOnLaunch);
    cudaGraphDestroy(graph);
    check(made, "cudaGraphInstantiate");
  }
  static py::object each_replay(const py::object& self, const py::function& call, const py::object& dtype) {
    if (!recording().is(self)) throw std::runtime_error("lec7.cuda.Graph.each_replay: only while it records");
    return py::cast<Graph&>(self).add(calls_of(self), call, dtype);
  }
  void keep(const std::shared_ptr<Block>& block) { kept_.insert(block); }
  static void replay(const py::object& self) {
    auto& graph = py::cast<Graph&>(self);
    if (graph.executable_ == nullptr) throw std::runtime_error("lec7.cuda.Graph: it has recorded nothing yet");
    if (cuda::capturing()) throw std::runtime_error("lec7.cuda.Graph: a graph does not record another one's replay");
    graph.run(calls_of(self));
  }

 private:
  static constexpr Index kMostNumbers = 4096;

  // In the object's __dict__, where the garbage collector sees what the functions refer to.
  static py::list calls_of(const py::object& self) { return self.attr("_calls"); }

  void begin(const py::object& self) {
    if (executable_ != nullptr) throw std::runtime_error("lec7.cuda.Graph: it has recorded already; make another");
    cuda::prepare_capture();
    self.attr("_calls") = py::list();
    used_ = 0;
    kept_.clear();
    stream_.enter();
    try {
      numbers_ = new_device_array(DType::int64, Shape{kMostNumbers});
      check(cudaStreamSynchronize(stream_.handle()), "cudaStreamSynchronize");  // replays may be on another stream
      check(cudaStreamBeginCapture(stream_.handle(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    } catch (...) {
      stream_.exit();
      throw;
    }
    outer_ = std::exchange(recorder, self);
  }

  py::object add(py::list calls, const py::function& call, const py::object& dtype) {
    const std::string name = py::str(dtype);
    if (!dtype.is_none() && name != "int64" && name != "float64")
      throw py::value_error("each_replay: dtype is int64 or float64");
    if (!dtype.is_none() && used_ == kMostNumbers)
      throw std::runtime_error("lec7.cuda.Graph: at most " + std::to_string(kMostNumbers) + " numbers are possible");
    calls.append(py::make_tuple(call, dtype));
    if (dtype.is_none()) return py::none();
    DeviceArray number = *numbers_;
    number.data = static_cast<Index*>(number.data) + used_++;
    number.dtype = name == "int64" ? DType::int64 : DType::float64;
    number.shape = Shape{};
    return py::cast(std::move(number));
  }

  void run(const py::list& calls) {
    std::vector<Index> numbers;
    for (const py::handle call : calls) {
      const auto [function, dtype] = py::cast<std::pair<py::function, py::object>>(call);
      const py::object number = function();
      if (dtype.is_none()) continue;
      numbers.push_back(dtype.equal(py::str("float64"))
                            ? std::bit_cast<Index>(PyFloat_AsDouble(number.ptr()))
                            // Modulo 2^64: a counter may use all bits.
                            : std::bit_cast<Index>(PyLong_AsUnsignedLongLongMask(number.ptr())));
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    }
    cuda::send_words(numbers, static_cast<Index*>(numbers_->data));
    const cudaStream_t on = cuda::current_stream();
    check(cudaGraphLaunch(executable_, on), "cudaGraphLaunch");
    // Arrays that were made while it recorded are released on its own stream: not before the replay is done.
    check(cudaEventRecord(replayed_, on), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream_.handle(), replayed_, 0), "cudaStreamWaitEvent");
  }

  Stream stream_;
  cudaEvent_t replayed_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
  py::handle outer_;  // the graph that was recording before
  std::optional<DeviceArray> numbers_;
  std::set<std::shared_ptr<Block>> kept_;  // what it reads and writes
  Index used_ = 0;
};

}  // namespace

void keep_for_replays(const std::shared_ptr<Block>& block) {
  if (recorder && !block->recorded() && cuda::capturing()) py::cast<Graph&>(recorder).keep(block);
}

void bind_stream(py::module_& m) {
  py::class_<Stream>(m, "Stream", py::module_local(),
                     "Work in order, beside that of other streams. `with stream:` makes it the current one.")
      .def(py::init<>())
      .def("__enter__", [](const py::object& self) { return py::cast<Stream&>(self).enter(), self; })
      .def("__exit__", [](Stream& self, const py::args&) { self.exit(); })
      .def("synchronize", &Stream::synchronize, py::call_guard<py::gil_scoped_release>(),
           "Wait for it; raise what went wrong on it.")
      .def_property_readonly(
          "handle", [](const Stream& self) { return reinterpret_cast<std::uintptr_t>(self.handle()); },
          "CUDA's cudaStream_t, as a number.");
  py::class_<Graph>(
      m, "Graph", py::module_local(), py::dynamic_attr(),
      "Ops to run again in one launch: those called inside `with graph:` are recorded, replay() runs them "
      "on the same arrays.")
      .def(py::init<>())
      .def("__enter__", [](const py::object& self) { return Graph::enter(self), self; })
      .def("__exit__", [](Graph& self, const py::object& error, const py::object&,
                          const py::object&) { self.exit(error.is_none()); })
      .def("each_replay", &Graph::each_replay, py::arg("call"), py::arg("dtype") = py::none(),
           "While it records: each replay begins with `call()`, in the order of these. With a dtype, \"int64\" or "
           "\"float64\", the array of shape () that this gives has what it returned; ops read it as a number.")
      .def("replay", &Graph::replay);
  m.def("recording", &recording, "The graph that records what the thread does now, or None.");
}

}  // namespace lec7::bindings
