// lec7.cuda.Array: a contiguous array on a GPU.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "../runtime.h"
#include "bindings/arrays.h"

namespace lec7::bindings {

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
  // Made while a graph recorded: the memory is the graph's.
  bool recorded() const { return recorded_; }
  // What was launched for it on the stream that it was made on comes before what the current stream does next.
  void join_current_stream() const;

 private:
  void* data_;
  std::size_t bytes_;
  int device_;
  cuda::Stream stream_;
  py::object owner_;
  bool foreign_, recorded_, freed_ = false;
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
