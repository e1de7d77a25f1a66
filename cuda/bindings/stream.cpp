#include "stream.h"

#include <memory>
#include <vector>

#include "../runtime.h"

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

// What is launched inside `with graph:` is recorded, not run; replay() runs all of it again, on the same memory.
class Graph {
 public:
  Graph() { check(cudaEventCreateWithFlags(&replayed_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
  ~Graph() {
    cudaEventDestroy(replayed_);
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }
  void enter() {
    if (executable_ != nullptr) throw std::runtime_error("lec7.cuda.Graph: it has recorded already; make another");
    cuda::prepare_capture();
    stream_.enter();
    const cudaError_t error = cudaStreamBeginCapture(stream_.handle(), cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess) stream_.exit();
    check(error, "cudaStreamBeginCapture");
  }
  void exit(bool keep) {
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
  void replay() {
    if (executable_ == nullptr) throw std::runtime_error("lec7.cuda.Graph: it has recorded nothing yet");
    const cudaStream_t on = cuda::current_stream();
    check(cudaGraphLaunch(executable_, on), "cudaGraphLaunch");
    // Arrays that were made while it recorded are released on its own stream: not before the replay is done.
    check(cudaEventRecord(replayed_, on), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream_.handle(), replayed_, 0), "cudaStreamWaitEvent");
  }

 private:
  Stream stream_;
  cudaEvent_t replayed_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

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
      m, "Graph", py::module_local(),
      "Ops to run again in one launch: those called inside `with graph:` are recorded, replay() runs them "
      "on the same arrays.")
      .def(py::init<>())
      .def("__enter__", [](const py::object& self) { return py::cast<Graph&>(self).enter(), self; })
      .def("__exit__", [](Graph& self, const py::object& error, const py::object&,
                          const py::object&) { self.exit(error.is_none()); })
      .def("replay", &Graph::replay);
}

}  // namespace lec7::bindings
