// lec7.cuda.Stream and lec7.cuda.Graph.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

namespace lec7::bindings {

class Block;

// Called wherever an array is used: a graph that records keeps its memory, unless it is the recording's own.
void keep_for_replays(const std::shared_ptr<Block>& block);

void bind_stream(pybind11::module_& m);

}  // namespace lec7::bindings
