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
    if (recording_ != nullptr) recording_->close();
    cudaEventDestroy(replayed_);
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }
  static void enter(const py::object& self) { py::cast<Graph&>(self).begin(self); }
  static void exit(const py::object& self, bool keep) {
    if (!recorder.is(self)) throw std::runtime_error("lec7.cuda.Graph: it does not record now");
    py::cast<Graph&>(self).end(keep);
  }
  static py::object each_replay(const py::object& self, const py::function& call, const py::object& dtype) {
    if (!recording().is(self)) throw std::runtime_error("lec7.cuda.Graph.each_replay: only while it records");
    return py::cast<Graph&>(self).add(calls_of(self), call, dtype);
  }
  void keep(const std::shared_ptr<Block>& block) { kept_.insert(block); }
  const std::shared_ptr<Recording>& own_recording() const { return recording_; }
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

  void check_device() const {
    if (cuda::current_device() == device_) return;
    throw std::runtime_error("lec7.cuda.Graph: it is on cuda:" + std::to_string(device_) +
                             ", the current device is cuda:" + std::to_string(cuda::current_device()));
  }

  void begin(const py::object& self) {
    if (executable_ != nullptr) throw std::runtime_error("lec7.cuda.Graph: it has recorded already; make another");
    if (recording_ != nullptr && recording_->open()) throw std::runtime_error("lec7.cuda.Graph: it records already");
    check_device();
    cuda::prepare_capture();
    self.attr("_calls") = py::list();
    used_ = 0;
    kept_.clear();
    stream_.enter();
    recording_ = std::make_shared<Recording>(cuda::shared_current_stream());
    try {
      numbers_ = new_device_array(DType::int64, Shape{kMostNumbers});
      numbers_->block->set_recording(recording_);
      check(cudaStreamSynchronize(stream_.handle()), "cudaStreamSynchronize");  // replays may be on another stream
      check(cudaStreamBeginCapture(stream_.handle(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    } catch (...) {
      stream_.exit();
      recording_->end();
      throw;
    }
    outer_ = std::exchange(recorder, self);
  }

  void end(bool keep) {
    recorder = outer_;
    cudaGraph_t graph = nullptr;
    const cudaError_t error = cudaStreamEndCapture(stream_.handle(), &graph);
    stream_.exit();
    recording_->end();
    if (!keep) {  // an exception goes on: what was recorded until then is dropped
      if (error == cudaSuccess) cudaGraphDestroy(graph);
      return;
    }
    check(error, "cudaStreamEndCapture");
    const cudaError_t made = cudaGraphInstantiate(&executable_, graph, cudaGraphInstantiateFlagAutoFreeOnLaunch);
    cudaGraphDestroy(graph);
    check(made, "cudaGraphInstantiate");
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
    check_device();
    for (const auto& block : kept_) {
      if (block->freed()) throw std::runtime_error("lec7.cuda.Graph: an array that it uses was freed");
      if (block->recording() != nullptr && !block->recording()->replayed()) {
        throw std::runtime_error("lec7.cuda.Graph: it uses a result of another graph; replay that one first");
      }
    }
    const cudaStream_t on = cuda::current_stream();
    // The replay before, on whichever stream, reads the numbers, and its memory is allocated again.
    check(cudaStreamWaitEvent(on, replayed_, 0), "cudaStreamWaitEvent");
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
    check(cudaGraphLaunch(executable_, on), "cudaGraphLaunch");
    recording_->note_replay();
    // What is the graph's is released on its own stream: not before the replay is done.
    check(cudaEventRecord(replayed_, on), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream_.handle(), replayed_, 0), "cudaStreamWaitEvent");
  }

  const int device_ = cuda::current_device();
  Stream stream_;
  std::shared_ptr<Recording> recording_;
  cudaEvent_t replayed_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
  py::handle outer_;  // the graph that was recording before
  std::optional<DeviceArray> numbers_;
  std::set<std::shared_ptr<Block>> kept_;  // what it reads and writes
  Index used_ = 0;
};

}  // namespace

void Recording::release(void* data) {
  if (state_ == State::ended) left_.push_back(data);
  // Without a replay there is no such memory, and the address may be another graph's by now.
  else if (state_ == State::open || replayed_) cuda::release(data, stream_.get(), device_);
}

void Recording::close() {
  state_ = State::closed;
  for (void* const data : std::exchange(left_, {})) release(data);
}

std::shared_ptr<Recording> current_recording() {
  if (!recorder || !cuda::capturing()) return nullptr;
  return py::cast<Graph&>(recorder).own_recording();
}

void use(const std::shared_ptr<Block>& block) {
  const auto now = current_recording();
  const auto& made = block->recording();
  if (made != nullptr && made == now) return;
  if (now != nullptr) {
    py::cast<Graph&>(recorder).keep(block);
  } else if (made != nullptr && !made->replayed()) {
    throw std::runtime_error("lec7.cuda.Array: it is a result of a graph that was not replayed yet; replay() first");
  }
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
      .def("__exit__", [](const py::object& self, const py::object& error, const py::object&,
                          const py::object&) { Graph::exit(self, error.is_none()); })
      .def("each_replay", &Graph::each_replay, py::arg("call"), py::arg("dtype") = py::none(),
           "While it records: each replay begins with `call()`, in the order of these. With a dtype, \"int64\" or "
           "\"float64\", the array of shape () that this gives has what it returned; ops read it as a number. A call "
           "that "
           "raises ends the replay before anything is launched; what the calls before it changed stays so.")
      .def("replay", &Graph::replay);
  m.def("recording", &recording, "The graph that records what the thread does now, or None.");
}

}  // namespace lec7::bindings
