// Memory, streams and graphs.
#include <cmath>
#include <new>

#include "arrays.h"
#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

__global__ void add_kernel(Index n, float amount, const float* x, float* y) { LEC7_STRIDED(i, n) y[i] = x[i] + amount; }
void add(Index n, float amount, const float* x, float* y) {
  launch("add_kernel", add_kernel, strided_grid(n), n, amount, x, y);
}

struct OnStream {
  Stream stream = new_stream();
  OnStream() { set_current_stream(stream); }
  ~OnStream() { set_current_stream({}); }
};

// The graph of what `body` does on a stream.
struct Graph {
  cudaGraphExec_t executable;
  template <class Body>
  Graph(const OnStream& on, Body&& body) {
    cudaGraph_t graph;
    cuda::check(cudaStreamBeginCapture(on.stream.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    body();
    cuda::check(cudaStreamEndCapture(on.stream.get(), &graph), "cudaStreamEndCapture");
    cuda::check(cudaGraphInstantiate(&executable, graph, 0ull), "cudaGraphInstantiate");
    cuda::check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  ~Graph() { cudaGraphExecDestroy(executable); }
  void replay(const OnStream& on) const {
    cuda::check(cudaGraphLaunch(executable, on.stream.get()), "cudaGraphLaunch");
  }
};

TEST(copies_go_there_and_back_and_words_are_filled) {
  const std::vector<float> x = random_floats(1001, 1);
  Device<float> a(x), b(x.size());
  copy_on_device(b.data(), a.data(), x.size() * sizeof(float));
  CHECK(b.host() == x);
  fill_words(b.data(), 0x3f800000, 1000);
  std::vector<float> want(1001, 1.0f);
  want.back() = x.back();
  CHECK(b.host() == want);
}

TEST(streams_run_what_they_are_given_in_order) {
  const OnStream stream;
  const std::vector<float> x = random_floats(5000, 1);
  Device<float> a(x);
  for (int i = 0; i < 8; ++i) add(5000, 1, a.data(), a.data());
  const std::vector<float> y = a.host();
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(std::abs(y[i] - x[i] - 8) < 1e-5f);
}

TEST(a_recorded_graph_runs_when_it_is_replayed_with_memory_of_its_own) {
  const OnStream stream;
  const std::vector<float> x(100, 1.0f);
  Device<float> a(x), y(100);
  fill_words(y.data(), 0, 100);
  const std::size_t before = memory_info().in_use;
  {
    const Graph graph(stream, [&] {
      Device<float> scratch(100);  // released while the graph is recorded
      add(100, 2, a.data(), scratch.data());
      Device<float> other(100);
      add(100, 3, scratch.data(), other.data());
      add(100, 4, other.data(), y.data());
    });
    check_equal(y.host()[0], 0.0f);  // recorded, not done
    for (int i = 0; i < 3; ++i) {
      const std::vector<float> next(100, static_cast<float>(i));
      copy_to_device(a.data(), next.data(), 400);
      graph.replay(stream);
      CHECK(y.host() == std::vector<float>(100, static_cast<float>(i + 9)));
    }
  }
  synchronize();
  check_equal(memory_info().in_use, before);
}

TEST(a_stream_that_is_recorded_cannot_be_waited_for) {
  const OnStream stream;
  const Graph graph(stream, [&] {
    const cudaError_t error = cudaStreamSynchronize(stream.stream.get());
#if defined(LEC7_CUDA_HOST)  // a GPU's recording would be lost
    check_equal(std::string(cudaGetErrorName(error)), "cudaErrorStreamCaptureUnsupported");
#else
    (void)error;
#endif
  });
}

TEST(memory_that_ran_out_is_bad_alloc_and_the_process_goes_on) {
  const std::size_t before = memory_info().in_use;
  for (int i = 0; i < 2; ++i) {
    bool refused = false;
    try {
      const Buffer<char> all(Index{1} << 48);
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    CHECK(refused);
    check_equal(memory_info().in_use, before);
    Device<float> a(std::vector<float>(10, 1.0f));
    add(10, 1, a.data(), a.data());
    check_equal(a.host()[9], 2.0f);
  }
}

}  // namespace
}  // namespace lec7::test
