// lec7.cuda.Stream and lec7.cuda.Graph.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>
#include <vector>

#include "../runtime.h"

namespace lec7::bindings {

class Block;

// What a graph shares with the arrays that were made while it recorded. Their memory is the graph's: there is none
// before the first replay, and each replay frees what is left of the one before and allocates it again.
class Recording {
 public:
  explicit Recording(cuda::Stream stream) : stream_(std::move(stream)) {}

  bool open() const { return state_ == State::open; }
  bool replayed() const { return replayed_; }
  void end() { state_ = State::ended; }
  void note_replay() { replayed_ = true; }
  // While it records, every replay frees the memory; afterwards, with the graph: until then the next one needs it.
  void release(void* data);
  void close();  // the graph goes

 private:
  enum class State { open, ended, closed };

  cuda::Stream stream_;
  int device_ = cuda::current_device();
  State state_ = State::open;
  bool replayed_ = false;
  std::vector<void*> left_;  // memory whose arrays are gone
};

// Of the graph that records what the thread does now; null: there is none.
std::shared_ptr<Recording> current_recording();

// Called wherever an array is used. A graph that records keeps it, unless it is the recording's own; a result of a
// graph that has not been replayed yet is refused.
void use(const std::shared_ptr<Block>& block);

void bind_stream(pybind11::module_& m);

}  // namespace lec7::bindings
