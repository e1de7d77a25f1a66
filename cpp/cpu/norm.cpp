// normalization is bound by memory: every pass over x counts, and statistics are taken while their numbers are cached.
//
// Local response: the squares of a few rows go to a small padded buffer, from which the window's cells are loaded at
// shifted places. Batch: each chunk of rows is read twice, for its mean and then for its moments about it, the second
// time from L2; chunks are joined in float64 (Chan, Golub, LeVeque 1979). Layer: the same for each row, from L1.
#include "lec7/norm.h"

#include <algorithm>
#include <cmath>

#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "reduce.h"
#include "scratch.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 15;  // numbers read a task

// ---- local response ----

constexpr Index kBlock = 1 << 11;  // numbers whose squares are in the buffer

// x^(-1/2); the estimate of 14 or 12 bits and one step of Newton's take a third of the time of root and division.
template <class T>
LEC7_INLINE Vec<T> reciprocal_sqrt(Vec<T> x) {
#if defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
#if defined(__AVX512F__)
    const Vec<T> guess = (Vec<T>)_mm512_rsqrt14_ps((__m512)x);
#else
    const Vec<T> guess = (Vec<T>)_mm256_rsqrt_ps((__m256)x);
#endif
    const Vec<T> y = guess * (1.5f - (0.5f * x * guess) * guess);
    return y == y ? y : guess;  // where x is 0 or infinity the step gives NaN and the guess is right
  }
#endif
  return T{1} / each_lane<T>(x, [](T v) { return std::sqrt(v); });
}

enum class Exponent { half, three_quarters, one, other };

// d^-beta, and 1 / d.
template <class T>
struct Powers {
  Vec<T> scale, inverse;
};
template <Exponent exponent, class T>
LEC7_INLINE Powers<T> powers(Vec<T> d, T beta) {
  if constexpr (exponent == Exponent::half || exponent == Exponent::three_quarters) {
    const Vec<T> root = reciprocal_sqrt<T>(d), inverse = root * root;
    if constexpr (exponent == Exponent::half) return {root, inverse};
    const Vec<T> scale = inverse * reciprocal_sqrt<T>(root);
    return {scale == scale ? scale : root, inverse};  // infinity * 0: root is 0 or infinity, as is the result
  } else {
    const Vec<T> inverse = T{1} / d;
    if constexpr (exponent == Exponent::one) return {inverse, inverse};
    return {each_lane<T>(d, [&](T v) { return std::pow(v, -beta); }), inverse};
  }
}

// Calls body<exponent>(half), half a constant for windows of 5 channels, as AlexNet's.
template <class Body>
void specialized(const LocalResponseNorm& s, Body&& body) {
  const auto with_half = [&]<Exponent exponent> {
    const Index half = std::min(s.size / 2, s.channels);  // a window that is wider holds no more channels
    if (half == 2) body.template operator()<exponent>(std::integral_constant<Index, 2>{});
    else body.template operator()<exponent>(half);
  };
  if (s.beta == 0.75) with_half.template operator()<Exponent::three_quarters>();
  else if (s.beta == 0.5) with_half.template operator()<Exponent::half>();
  else if (s.beta == 1) with_half.template operator()<Exponent::one>();
  else with_half.template operator()<Exponent::other>();
}

// For each block of rows: runs term(i, lanes) on all numbers, keeps the results in rows with `half` zeros on both
// sides, then runs use(i, lanes, sum over the window of the terms), and fetch(i) on the numbers of the next block: the
// terms wait for memory, the windows do not.
template <class T, class Half, class Fetch, class Term, class Use>
LEC7_INLINE void for_windows(const LocalResponseNorm& s, Half half, Fetch&& fetch, Term&& term, Use&& use) {
  const Index stride = s.channels + 2 * half, block = std::max<Index>(1, kBlock / std::max<Index>(1, stride));
  const Index task_rows = std::max(block, kGrain / std::max<Index>(1, s.channels) / block * block);
  const Index tasks = (s.rows + task_rows - 1) / task_rows;
  Scratch<T> scratch(tasks, block * stride);
  parallel_region(tasks, [&](const Team& team) {
    T* const terms = scratch[team.thread];
    std::fill_n(terms, block * stride, T{0});
    team.for_each(tasks, [&](Index task) {
      const Index end = std::min(s.rows, (task + 1) * task_rows);
      for (Index row = task * task_rows; row < end; row += block) {
        const Index rows = std::min(block, end - row);
        for (Index r = 0; r < rows; ++r) {
          for_lanes<T>(s.channels, [&](Index c, auto lanes) LEC7_LAMBDA_INLINE {
            store_lanes(terms + r * stride + half + c, term((row + r) * s.channels + c, lanes), lanes);
          });
        }
        for (Index r = 0; r < rows; ++r) {
          for_lanes<T>(s.channels, [&](Index c, auto lanes) LEC7_LAMBDA_INLINE {
            const T* const window = terms + r * stride + c;
            Vec<T> sum = load_lanes(window, lanes);
            for (Index j = 1; j <= 2 * half; ++j) sum += load_lanes(window + j, lanes);
            fetch((row + r + block) * s.channels + c);
            use((row + r) * s.channels + c, lanes, sum);
          });
        }
      }
    });
  });
}

}  // namespace

template <class T>
void local_response_norm_forward(const LocalResponseNorm& s, const T* x, T* y, T* saved) {
  const T beta = static_cast<T>(s.beta), k = static_cast<T>(s.k);
  const T alpha = static_cast<T>(s.alpha / static_cast<double>(s.size));
  specialized(s, [&]<Exponent exponent>(auto half) {
    for_windows<T>(
        s, half, [&](Index i) LEC7_LAMBDA_INLINE { __builtin_prefetch(x + i); },
        [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
          const Vec<T> v = load_lanes(x + i, lanes);
          return v * v;
        },
        [&](Index i, auto lanes, Vec<T> sum) LEC7_LAMBDA_INLINE {
          const Vec<T> d = sum * alpha + k;
          store_lanes(saved + i, d, lanes);
          store_lanes(y + i, load_lanes(x + i, lanes) * powers<exponent, T>(d, beta).scale, lanes);
        });
  });
}

template <class T>
void local_response_norm_backward(const LocalResponseNorm& s, const T* dy, const T* x, const T* saved, T* dx) {
  const T beta = static_cast<T>(s.beta);
  const T slope = static_cast<T>(2 * s.alpha * s.beta / static_cast<double>(s.size));
  specialized(s, [&]<Exponent exponent>(auto half) {
    for_windows<T>(
        s, half,
        [&](Index i) LEC7_LAMBDA_INLINE {
          __builtin_prefetch(dy + i);
          __builtin_prefetch(x + i);
          __builtin_prefetch(saved + i);
        },
        [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
          const auto [scale, inverse] = powers<exponent, T>(load_lanes(saved + i, lanes), beta);
          const Vec<T> scaled = load_lanes(dy + i, lanes) * scale;
          store_lanes(dx + i, scaled, lanes);
          return scaled * load_lanes(x + i, lanes) * inverse;
        },
        [&](Index i, auto lanes, Vec<T> sum) LEC7_LAMBDA_INLINE {
          store_lanes(dx + i, load_lanes(dx + i, lanes) - load_lanes(x + i, lanes) * slope * sum, lanes);
        });
  });
}

// ---- batch ----

namespace {

constexpr Index kRowGroup = 8;  // rows added up in registers before a sum goes back to memory
// Rows of a chunk: so many that its sums are a small part of what it reads, so few that they lose little to rounding.
constexpr Index kLeastRows = 32, kMostRows = 512;

// Rows, cut into chunks of about kGrain numbers.
struct Chunks {
  Index rows, channels;
  Index height = std::clamp(kGrain / std::max<Index>(1, channels) / kRowGroup * kRowGroup, kLeastRows, kMostRows);
  Index count = (rows + height - 1) / height;

  Index begin(Index chunk) const { return chunk * height; }
  Index size(Index chunk) const { return std::min(height, rows - begin(chunk)); }
};

// Calls body(chunk) on all threads, the last chunk first: it was read or written last, by the pass or the op before,
// and is still in L2.
template <class Body>
void for_chunks_backwards(const Chunks& chunks, Body&& body) {
  parallel_for(chunks.count, [&](Index task) { body(chunks.count - 1 - task); });
}

// Calls body(i, lanes, c, group) on all numbers: `group` rows from element i on, `lanes` channels from c on.
template <class T, class Body>
LEC7_INLINE void for_row_groups(Index rows, Index channels, Body&& body) {
  Index row = 0;
  for (; row + kRowGroup <= rows; row += kRowGroup) {
    for_lanes<T>(channels, [&](Index c, auto lanes) LEC7_LAMBDA_INLINE {
      body(row * channels + c, lanes, c, std::integral_constant<int, kRowGroup>{});
    });
  }
  for (; row < rows; ++row) {
    for_lanes<T>(channels, [&](Index c, auto lanes) LEC7_LAMBDA_INLINE {
      body(row * channels + c, lanes, c, std::integral_constant<int, 1>{});
    });
  }
}

// For each channel of each chunk: a point near the mean, and the sums of (x - point) and (x - point)^2.
template <class T>
struct Moments {
  const Chunks& chunks;
  memory::Buffer<T> buffer{3 * chunks.count * chunks.channels};

  T* point(Index chunk) { return buffer.data() + 3 * chunk * chunks.channels; }
  T* first(Index chunk) { return point(chunk) + chunks.channels; }
  T* second(Index chunk) { return point(chunk) + 2 * chunks.channels; }
};

// The rows of the next chunk are fetched during the second pass, which would leave the memory idle.
template <class T>
void chunk_moments(Index rows, Index channels, const T* x, T* point, T* first, T* second) {
  std::fill_n(point, 3 * channels, T{0});
  for_row_groups<T>(rows, channels, [&](Index i, auto lanes, Index c, auto group) LEC7_LAMBDA_INLINE {
    Vec<T> sum{};
    for (int r = 0; r < group; ++r) sum += load_lanes(x + i + r * channels, lanes);
    store_lanes(point + c, load_lanes(point + c, lanes) + sum, lanes);
  });
  const T scale = T{1} / static_cast<T>(rows);
  for_lanes<T>(channels, [&](Index c, auto lanes) LEC7_LAMBDA_INLINE {
    store_lanes(point + c, load_lanes(point + c, lanes) * scale, lanes);
  });
  for_row_groups<T>(rows, channels, [&](Index i, auto lanes, Index c, auto group) LEC7_LAMBDA_INLINE {
    const Vec<T> mean = load_lanes(point + c, lanes);
    Vec<T> sum{}, squares{};
    for (int r = 0; r < group; ++r) {
      __builtin_prefetch(x + rows * channels + i + r * channels, 0, 2);
      const Vec<T> v = load_lanes(x + i + r * channels, lanes) - mean;
      sum += v;
      squares += v * v;
    }
    store_lanes(first + c, load_lanes(first + c, lanes) + sum, lanes);
    store_lanes(second + c, load_lanes(second + c, lanes) + squares, lanes);
  });
}

// Runs body(begin, end) on ranges of channels, to join their chunks in order.
template <class Body>
void for_channel_ranges(const Chunks& chunks, Body&& body) {
  parallel_ranges(chunks.channels, std::max<Index>(64, kGrain / std::max<Index>(1, chunks.count)), body);
}

// mean and var (over n) of each channel.
template <class T>
void batch_statistics(const Chunks& chunks, const T* x, double* mean, double* var) {
  const Index channels = chunks.channels;
  Moments<T> moments{chunks};
  parallel_for(chunks.count, [&](Index chunk) {
    chunk_moments(chunks.size(chunk), channels, x + chunks.begin(chunk) * channels, moments.point(chunk),
                  moments.first(chunk), moments.second(chunk));
  });
  const double n = static_cast<double>(chunks.rows);
  for_channel_ranges(chunks, [&](Index begin, Index end) {
    std::fill(mean + begin, mean + end, 0);
    std::fill(var + begin, var + end, 0);
    for (Index chunk = 0; chunk < chunks.count; ++chunk) {
      const T *const point = moments.point(chunk), *const first = moments.first(chunk);
      const double rows = static_cast<double>(chunks.size(chunk));
      for (Index c = begin; c < end; ++c) mean[c] += rows * point[c] + first[c];
    }
    for (Index c = begin; c < end; ++c) mean[c] /= n;
    for (Index chunk = 0; chunk < chunks.count; ++chunk) {
      const T *const point = moments.point(chunk), *const first = moments.first(chunk);
      const T* const second = moments.second(chunk);
      const double rows = static_cast<double>(chunks.size(chunk));
      for (Index c = begin; c < end; ++c) {
        const double distance = point[c] - mean[c], twice = 2.0 * first[c];
        var[c] += distance * (rows * distance + twice) + second[c];
      }
    }
    for (Index c = begin; c < end; ++c) var[c] = std::max(var[c] / n, 0.0);  // rounding; NaN stays
  });
}

}  // namespace

template <class T>
void batch_norm_forward(const NormShape& s, const BatchNormOptions& options, const T* x, const T* gamma, const T* beta,
                        T* running_mean, T* running_var, T* y, T* saved) {
  const Index channels = s.channels;
  const Chunks chunks{s.rows, channels};
  memory::Buffer<double> statistics(2 * channels);
  double *const mean = statistics.data(), *const var = mean + channels;
  if (options.training) {
    batch_statistics(chunks, x, mean, var);
    const double n = static_cast<double>(s.rows), momentum = options.momentum;
    for (Index c = 0; c < channels; ++c) {
      running_mean[c] = static_cast<T>((1 - momentum) * running_mean[c] + momentum * mean[c]);
      running_var[c] = static_cast<T>((1 - momentum) * running_var[c] + momentum * var[c] * (n / (n - 1)));
    }
  } else {
    std::copy_n(running_mean, channels, mean);
    std::copy_n(running_var, channels, var);
  }

  // y = (x - mean) scale + offset. The mean's own rounding goes into the offset: 1e4 in float32 is off by up to 5e-4.
  memory::Buffer<T> coefficients(2 * channels);
  T *const scale = coefficients.data(), *const offset = scale + channels;
  for (Index c = 0; c < channels; ++c) {
    const double inverse = 1 / std::sqrt(var[c] + options.eps), slope = gamma[c] * inverse;
    saved[c] = static_cast<T>(mean[c]);
    saved[channels + c] = static_cast<T>(inverse);
    scale[c] = static_cast<T>(slope);
    offset[c] = static_cast<T>(beta[c] + (saved[c] - mean[c]) * slope);
  }
  for_chunks_backwards(chunks, [&](Index chunk) {
    const Index at = chunks.begin(chunk) * channels;
    for_row_groups<T>(chunks.size(chunk), channels, [&](Index i, auto lanes, Index c, auto group) LEC7_LAMBDA_INLINE {
      const Vec<T> m = load_lanes(saved + c, lanes), a = load_lanes(scale + c, lanes),
                   b = load_lanes(offset + c, lanes);
      for (int r = 0; r < group; ++r) {
        const Index j = at + i + r * channels;
        store_lanes(y + j, (load_lanes(x + j, lanes) - m) * a + b, lanes);
      }
    });
  });
}

namespace {

// For each channel: the sums of dy and of dy (x - mean).
template <class T>
void batch_gradient_sums(const Chunks& chunks, const T* dy, const T* x, const T* mean, double* sum, double* product) {
  const Index channels = chunks.channels;
  memory::Buffer<T> partial(2 * chunks.count * channels);
  parallel_for(chunks.count, [&](Index chunk) {
    const Index at = chunks.begin(chunk) * channels;
    T *const sums = partial.data() + 2 * chunk * channels, *const products = sums + channels;
    std::fill_n(sums, 2 * channels, T{0});
    for_row_groups<T>(chunks.size(chunk), channels, [&](Index i, auto lanes, Index c, auto group) LEC7_LAMBDA_INLINE {
      const Vec<T> m = load_lanes(mean + c, lanes);
      Vec<T> s{}, p{};
      for (int r = 0; r < group; ++r) {
        const Index j = at + i + r * channels;
        const Vec<T> g = load_lanes(dy + j, lanes);
        s += g;
        p += g * (load_lanes(x + j, lanes) - m);
      }
      store_lanes(sums + c, load_lanes(sums + c, lanes) + s, lanes);
      store_lanes(products + c, load_lanes(products + c, lanes) + p, lanes);
    });
  });
  for_channel_ranges(chunks, [&](Index begin, Index end) {
    std::fill(sum + begin, sum + end, 0);
    std::fill(product + begin, product + end, 0);
    for (Index chunk = 0; chunk < chunks.count; ++chunk) {
      const T *const sums = partial.data() + 2 * chunk * channels, *const products = sums + channels;
      for (Index c = begin; c < end; ++c) sum[c] += sums[c];
      for (Index c = begin; c < end; ++c) product[c] += products[c];
    }
  });
}

}  // namespace

template <class T>
void batch_norm_backward(const NormShape& s, bool training, const T* dy, const T* x, const T* gamma, const T* saved,
                         T* dx, T* dgamma, T* dbeta) {
  const Index channels = s.channels;
  const T *const mean = saved, *const inverse = saved + channels;
  const Chunks chunks{s.rows, channels};
  memory::Buffer<double> totals(2 * channels);
  double *const sum = totals.data(), *const product = sum + channels;
  if (dgamma != nullptr || dbeta != nullptr || training) batch_gradient_sums(chunks, dy, x, mean, sum, product);
  for (Index c = 0; c < channels; ++c) {
    if (dgamma != nullptr) dgamma[c] = static_cast<T>(product[c] * inverse[c]);
    if (dbeta != nullptr) dbeta[c] = static_cast<T>(sum[c]);
  }
  if (dx == nullptr) return;

  // dx = scale dy + (slope (x - mean) + offset)
  memory::Buffer<T> coefficients(3 * channels);
  T *const scale = coefficients.data(), *const slope = scale + channels, *const offset = slope + channels;
  const double n = static_cast<double>(s.rows);
  for (Index c = 0; c < channels; ++c) {
    const double a = static_cast<double>(gamma[c]) * inverse[c];
    scale[c] = static_cast<T>(a);
    if (!training) continue;
    slope[c] = static_cast<T>(-a * inverse[c] * inverse[c] * product[c] / n);
    offset[c] = static_cast<T>(-a * sum[c] / n);
  }
  for_chunks_backwards(chunks, [&](Index chunk) {
    const Index at = chunks.begin(chunk) * channels;
    for_row_groups<T>(chunks.size(chunk), channels, [&](Index i, auto lanes, Index c, auto group) LEC7_LAMBDA_INLINE {
      const Vec<T> a = load_lanes(scale + c, lanes);
      if (!training) {
        for (int r = 0; r < group; ++r) {
          const Index j = at + i + r * channels;
          store_lanes(dx + j, a * load_lanes(dy + j, lanes), lanes);
        }
        return;
      }
      const Vec<T> m = load_lanes(mean + c, lanes), b = load_lanes(slope + c, lanes);
      const Vec<T> offsets = load_lanes(offset + c, lanes);
      for (int r = 0; r < group; ++r) {
        const Index j = at + i + r * channels;
        const Vec<T> constant = b * (load_lanes(x + j, lanes) - m) + offsets;
        store_lanes(dx + j, a * load_lanes(dy + j, lanes) + constant, lanes);
      }
    });
  });
}

// ---- layer ----

namespace {

// Two sums over a row at once: term(i, lanes) gives their terms. Lanes past the end do not count.
template <class T>
struct TwoSums {
  Vec<T> first, second;
};
template <class T, class Term>
LEC7_INLINE auto row_sums(Index size, Term&& term) {
  TwoSums<T> sums[4] = {};
  for_lanes_of_four<T>(sums, size, [&](TwoSums<T>& sum, Index i, auto lanes) LEC7_LAMBDA_INLINE {
    const auto [first, second] = term(i, lanes);
    sum.first += first_lanes<T>(first, lanes, T{0});
    sum.second += first_lanes<T>(second, lanes, T{0});
  });
  struct {
    T first, second;
  } result{reduce_four<T>(sums[0].first, sums[1].first, sums[2].first, sums[3].first),
           reduce_four<T>(sums[0].second, sums[1].second, sums[2].second, sums[3].second)};
  return result;
}

// Rows ahead that are fetched while a row is in hand: its sums wait for each other, and memory would wait with them.
constexpr Index kRowsAhead = 2;

}  // namespace

template <class T>
void layer_norm_forward(const NormShape& s, double eps, const T* x, const T* gamma, const T* beta, T* y, T* saved) {
  const Index channels = s.channels, ahead = kRowsAhead * channels;
  const double n = static_cast<double>(channels);
  parallel_ranges(s.rows, std::max<Index>(1, kGrain / channels), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const T* const in = x + row * channels;
      T* const out = y + row * channels;
      const auto number = [&](Index i, auto lanes) LEC7_LAMBDA_INLINE { return load_lanes(in + i, lanes); };
      const T point = row_sum<T>(channels, number) / static_cast<T>(channels);  // the mean, up to rounding
      const auto sums = row_sums<T>(channels, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
        __builtin_prefetch(in + ahead + i);
        const Vec<T> v = number(i, lanes) - point;
        return TwoSums<T>{v, v * v};
      });
      const double rest = sums.first / n, var = std::max(sums.second / n - rest * rest, 0.0);
      const double inverse = 1 / std::sqrt(var + eps);
      saved[row] = static_cast<T>(point + rest);
      saved[s.rows + row] = static_cast<T>(inverse);
      const T scale = static_cast<T>(inverse), offset = static_cast<T>(-rest * inverse);
      for_lanes<T>(channels, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
        const Vec<T> normalized = (number(i, lanes) - point) * scale + offset;
        store_lanes(out + i, normalized * load_lanes(gamma + i, lanes) + load_lanes(beta + i, lanes), lanes);
      });
    }
  });
}

template <class T>
void layer_norm_backward(const NormShape& s, const T* dy, const T* x, const T* gamma, const T* saved, T* dx, T* dgamma,
                         T* dbeta) {
  const Index channels = s.channels, ahead = kRowsAhead * channels;
  const Chunks chunks{s.rows, channels};
  const bool sums = dgamma != nullptr || dbeta != nullptr;
  memory::Buffer<T> partial(sums ? 2 * chunks.count * channels : 0);
  for_chunks_backwards(chunks, [&](Index chunk) {
    T *const dgammas = partial.data() + 2 * chunk * channels, *const dbetas = dgammas + channels;
    if (sums) std::fill_n(dgammas, 2 * channels, T{0});
    const Index end = chunks.begin(chunk) + chunks.size(chunk);
    for (Index row = chunks.begin(chunk); row < end; ++row) {
      const T *const in = x + row * channels, *const grad = dy + row * channels;
      const T mean = saved[row], inverse = saved[s.rows + row];
      const auto xhat = [&](Index i, auto lanes)
                            LEC7_LAMBDA_INLINE { return (load_lanes(in + i, lanes) - mean) * inverse; };
      if (dx != nullptr) {
        T* const out = dx + row * channels;
        const auto scaled = [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
          return load_lanes(grad + i, lanes) * load_lanes(gamma + i, lanes);
        };
        const auto sums = row_sums<T>(channels, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
          __builtin_prefetch(in + ahead + i);
          __builtin_prefetch(grad + ahead + i);
          const Vec<T> g = scaled(i, lanes);
          return TwoSums<T>{g, g * xhat(i, lanes)};
        });
        const T mean_g = sums.first / static_cast<T>(channels), mean_gx = sums.second / static_cast<T>(channels);
        for_lanes<T>(channels, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
          store_lanes(out + i, (scaled(i, lanes) - mean_g - xhat(i, lanes) * mean_gx) * inverse, lanes);
        });
      }
      if (sums) {
        for_lanes<T>(channels, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
          const Vec<T> g = load_lanes(grad + i, lanes);
          store_lanes(dgammas + i, load_lanes(dgammas + i, lanes) + g * xhat(i, lanes), lanes);
          store_lanes(dbetas + i, load_lanes(dbetas + i, lanes) + g, lanes);
        });
      }
    }
  });
  if (!sums) return;
  for_lanes<T>(channels, [&](Index i, auto lanes) {
    Vec<T> gammas{}, betas{};
    for (Index chunk = 0; chunk < chunks.count; ++chunk) {
      const T* const part = partial.data() + 2 * chunk * channels + i;
      gammas += load_lanes(part, lanes);
      betas += load_lanes(part + channels, lanes);
    }
    if (dgamma != nullptr) store_lanes(dgamma + i, gammas, lanes);
    if (dbeta != nullptr) store_lanes(dbeta + i, betas, lanes);
  });
}

#define LEC7_INSTANTIATE(T)                                                                                         \
  template void local_response_norm_forward(const LocalResponseNorm&, const T*, T*, T*);                            \
  template void local_response_norm_backward(const LocalResponseNorm&, const T*, const T*, const T*, T*);           \
  template void batch_norm_forward(const NormShape&, const BatchNormOptions&, const T*, const T*, const T*, T*, T*, \
                                   T*, T*);                                                                         \
  template void batch_norm_backward(const NormShape&, bool, const T*, const T*, const T*, const T*, T*, T*, T*);    \
  template void layer_norm_forward(const NormShape&, double, const T*, const T*, const T*, T*, T*);                 \
  template void layer_norm_backward(const NormShape&, const T*, const T*, const T*, const T*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
