// lec7.cuda.Array: a contiguous array on a GPU.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "../runtime.h"
#include "bindings/arrays.h"

namespace lec7::bindings {

class Recording;

// Memory of the device: released on its stream when the last array that views it is gone.
class Block {
 public:
  explicit Block(std::size_t bytes);
  // Memory of another library: `owner` is let go of at the end.
  Block(void* data, std::size_t bytes, int device, py::object owner);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  int device() const { return device_; }
  // Gives the memory back at once; arrays that view it refuse to be used from then on.
  void free();
  bool freed() const { return freed_; }
  // The graph's whose replays write it; null: none's.
  const std::shared_ptr<Recording>& recording() const { return recording_; }
  void set_recording(std::shared_ptr<Recording> recording) { recording_ = std::move(recording); }
  // What was launched for it on the stream that it was made on comes before what the current stream does next.
  void join_current_stream() const;

 private:
  enum class Memory { ours, foreign, graphs };

  std::shared_ptr<Recording> recording_;
  Memory memory_;
  bool freed_ = false;
  std::size_t bytes_;
  int device_;
  cuda::Stream stream_;
  py::object owner_;
  void* data_;  // the last: nothing is thrown once there is memory
};

struct DeviceArray {
  std::shared_ptr<Block> block;
  void* data;
  DType dtype;
  Shape shape;

  std::size_t bytes() const;
};

DeviceArray new_device_array(DType dtype, const Shape& shape);
DeviceArray zeros(const py::tuple& dims);  // float32
// A copy of anything that NumPy can make an array of; its dtype stays.
DeviceArray to_device(py::handle value);

void bind_device_array(py::module_& m);

}  // namespace lec7::bindings
