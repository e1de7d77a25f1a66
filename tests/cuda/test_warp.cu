// Operations of a warp: shuffles, votes, barriers; with segments, with partial masks, with half a warp.
#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

struct Shuffled {
  int from, up, down, exchanged;
};

__global__ void shuffle_kernel(int width, int argument, Shuffled* y) {
  const int x = 100 + static_cast<int>(threadIdx.x);
  y[threadIdx.x] = {__shfl_sync(~0u, x, argument, width), __shfl_up_sync(~0u, x, argument, width),
                    __shfl_down_sync(~0u, x, argument, width), __shfl_xor_sync(~0u, x, argument, width)};
}

// The CUDA C++ Programming Guide's words: segments of `width` lanes; a source outside the segment gives the own value,
// but for shfl, whose source is taken modulo the width.
TEST(shuffles_move_values_inside_segments) {
  for (const int width : {1, 2, 4, 8, 16, 32}) {
    for (const int argument : {0, 1, 2, 3, 7, 16, 31}) {
      const Trying scope(text("width=", width, ", argument=", argument));
      in_several_orders([&] {
        Device<Shuffled> y(64);
        launch("shuffle_kernel", shuffle_kernel, {1, 64}, width, argument, y.data());
        const std::vector<Shuffled> got = y.host();
        for (int t = 0; t < 64; ++t) {
          const int segment = t / width * width, inside = t % width;
          check_equal(got[t].from, 100 + segment + argument % width);
          check_equal(got[t].up, 100 + (inside >= argument ? t - argument : t));
          check_equal(got[t].down, 100 + (inside + argument < width ? t + argument : t));
          // A partner in an earlier segment can be read, one in a later cannot.
          const int partner = t / 32 * 32 + ((t % 32) ^ argument);
          check_equal(got[t].exchanged, 100 + (partner < segment + width ? partner : t));
        }
      });
    }
  }
}

template <class T>
__global__ void sum_kernel(const T* x, T* y) {
  T sum = x[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  y[threadIdx.x] = sum;
}

template <class T>
void sums() {
  std::vector<T> x(96);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(i + 1);
  Device<T> from(x), to(x.size());
  launch("sum_kernel", sum_kernel<T>, {1, 96}, static_cast<const T*>(from.data()), to.data());
  const std::vector<T> y = to.host();
  for (std::size_t i = 0; i < y.size(); ++i) check_equal(y[i], static_cast<T>(528 + 1024 * (i / 32)));
}

TEST(values_of_every_size_are_shuffled) {
  in_several_orders([] {
    sums<int>();
    sums<float>();
    sums<double>();
    sums<long long>();
  });
}

struct Votes {
  unsigned ballot;
  int any, all, active;
};

__global__ void vote_kernel(unsigned limit, Votes* y) {
  const int vote = threadIdx.x < limit ? 3 : 0;
  y[threadIdx.x] = {__ballot_sync(~0u, vote), __any_sync(~0u, vote), __all_sync(~0u, vote), 1};
}

TEST(votes_are_counted) {
  for (const unsigned limit : {0u, 1u, 5u, 31u, 32u, 64u}) {
    in_several_orders([&] {
      Device<Votes> y(64);
      launch("vote_kernel", vote_kernel, {1, 64}, limit, y.data());
      const std::vector<Votes> got = y.host();
      for (unsigned t = 0; t < 64; ++t) {
        const unsigned first = t / 32 * 32, yes = limit <= first ? 0 : std::min(limit - first, 32u);
        check_equal(got[t].ballot, yes == 32 ? ~0u : (1u << yes) - 1);
        check_equal(got[t].any, static_cast<int>(yes > 0));
        check_equal(got[t].all, static_cast<int>(yes == 32));
      }
    });
  }
}

// The halves of a warp go their own ways, and come together again.
__global__ void halves_kernel(int* y) {
  const unsigned lane = threadIdx.x % 32;
  int x = static_cast<int>(threadIdx.x);
  if (lane < 16) {
    for (int i = 0; i < 5; ++i) x = __shfl_xor_sync(0x0000ffffu, x, 1) + 1;
  } else if (lane >= 20) {
    for (int i = 0; i < 3; ++i) x = __shfl_sync(0xfff00000u, x, 20) + 1;
  }
  x += __shfl_xor_sync(~0u, x, 16);
  y[threadIdx.x] = x;
}

TEST(parts_of_a_warp_shuffle_among_themselves) {
  in_several_orders([] {
    Device<int> y(64);
    launch("halves_kernel", halves_kernel, {1, 64}, y.data());
    const std::vector<int> got = y.host();
    const auto part = [](int t) {
      const int lane = t % 32, base = t - lane;
      return lane < 16 ? base + (lane ^ 1) + 5 : lane < 20 ? t : base + 20 + 3;
    };
    for (int t = 0; t < 64; ++t) check_equal(got[t], part(t) + part(t ^ 16));
  });
}

// Warps that write for each other need more than their own barrier; lanes of one warp do not.
__global__ void rotate_kernel(int rounds, int* y) {
  LEC7_SHARED(values, int[128]);
  int x = static_cast<int>(threadIdx.x);
  const unsigned next = threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32;
  for (int round = 0; round < rounds; ++round) {
    values[threadIdx.x] = x;
    __syncwarp();
    x = values[next];
    __syncwarp();
  }
  y[threadIdx.x] = x;
}

TEST(barriers_of_a_warp_order_what_its_lanes_write) {
  in_several_orders([] {
    Device<int> y(128);
    launch("rotate_kernel", rotate_kernel, {1, 128}, 5, y.data());
    const std::vector<int> got = y.host();
    for (int t = 0; t < 128; ++t) check_equal(got[t], t / 32 * 32 + (t + 5) % 32);
  });
}

__global__ void last_warp_kernel(int* y) { y[threadIdx.x] = __popc(__ballot_sync(~0u, 1)); }

TEST(the_last_warp_may_have_fewer_lanes) {
  in_several_orders([] {
    Device<int> y(41);
    launch("last_warp_kernel", last_warp_kernel, {1, 41}, y.data());
    const std::vector<int> got = y.host();
    for (int t = 0; t < 41; ++t) check_equal(got[t], t < 32 ? 32 : 9);
  });
}

}  // namespace
}  // namespace lec7::test
