// normalization: bound by memory, so that every read of x counts.
//
//   local_response_norm   forward 12 bytes a number, backward 16: the terms of a tile and of its neighbours go to
//                         shared memory, from which the windows add them up
//   batch_norm            forward 4 for the statistics and 8; backward 8 for the sums and 12 (8 frozen)
//   layer_norm            forward 8: a row stays in its threads' registers (row.h); backward 12, and 8 for the sums
//
// Statistics are safe for numbers far from 0 and outliers: each tile's mean is taken while its numbers are in
// registers, then the moments about it; tiles are joined in float64 (Chan, Golub, LeVeque 1979), which costs little
// beside the 16 rows a thread that they stand for. Sums over rows have two stages, cut by the array's shape alone.
#include "lec7/norm.h"

#include "elementwise.h"
#include "reduce.h"
#include "row.h"

namespace lec7::cuda {

// ---- local response ----

namespace {

constexpr int kResponseTile = 4 * kThreads;
constexpr Index kMostStaged = 1024;  // channels on each side: beyond, windows compute their terms again

struct Response {
  Index n, channels, half;
  float alpha, beta, k;  // alpha over the size; 2 alpha beta over the size in backward

  // d^-beta in x, 1 / d in y.
  __device__ float2 powers(float d) const {
    if (beta == 0.75f || beta == 0.5f) {
      const float root = 1 / sqrtf(d);
      return {beta == 0.5f ? root : root * sqrtf(root), root * root};
    }
    const float inverse = 1 / d;
    return {beta == 1 ? inverse : powf(d, -beta), inverse};
  }
};

// Calls use(i, sum over the window of number i of the terms) on a tile of numbers; term(i) computes a term, and
// keep(j, i) the j-th of this thread's own.
template <bool staged, class Term, class Keep, class Use>
__device__ void for_windows(const Response& s, Term&& term, Keep&& keep, Use&& use) {
  const Index first = static_cast<Index>(blockIdx.x) * kResponseTile;
  const int half = static_cast<int>(s.half), self = static_cast<int>(threadIdx.x);
  float* terms = nullptr;
  if constexpr (staged) {
    LEC7_DYNAMIC_SHARED(memory, float);
    terms = memory;
    const auto stage = [&](int place, Index i, auto&& compute) {
      if (i >= 0 && i < s.n) terms[place] = compute(i);
    };
#pragma unroll
    for (int j = 0; j < kResponseTile / kThreads; ++j) {
      const int at = self + j * kThreads;
      stage(half + at, first + at, [&](Index i) { return keep(j, i); });
    }
    for (int at = self; at < 2 * half; at += kThreads) {
      const int place = at < half ? at : at + kResponseTile;
      stage(place, first + place - half, term);
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < kResponseTile / kThreads; ++j) {
    const int at = self + j * kThreads;
    const Index i = first + at;
    if (i >= s.n) break;
    if constexpr (!staged) keep(j, i);
    const Index c = i % s.channels, low = c < s.half ? -c : -s.half;
    const Index high = s.channels - 1 - c < s.half ? s.channels - 1 - c : s.half;
    float sum = 0;
    for (Index w = low; w <= high; ++w) {
      if constexpr (staged) sum += terms[half + at + w];
      else sum += term(i + w);
    }
    use(j, i, sum);
  }
}

template <bool staged>
__global__ void __launch_bounds__(kThreads)
    local_response_norm_forward_kernel(Response s, const float* x, float* y, float* saved) {
  float own[kResponseTile / kThreads];
  for_windows<staged>(
      s, [&](Index i) { return x[i] * x[i]; },
      [&](int j, Index i) {
        own[j] = x[i];
        return own[j] * own[j];
      },
      [&](int j, Index i, float sum) {
        const float d = sum * s.alpha + s.k;
        saved[i] = d;
        y[i] = own[j] * s.powers(d).x;
      });
}

template <bool staged>
__global__ void __launch_bounds__(kThreads)
    local_response_norm_backward_kernel(Response s, const float* dy, const float* x, const float* saved, float* dx) {
  float own[kResponseTile / kThreads], scaled[kResponseTile / kThreads];
  for_windows<staged>(
      s,
      [&](Index i) {
        const float2 power = s.powers(saved[i]);
        return dy[i] * power.x * x[i] * power.y;
      },
      [&](int j, Index i) {
        const float2 power = s.powers(saved[i]);
        own[j] = x[i];
        scaled[j] = dy[i] * power.x;
        return scaled[j] * own[j] * power.y;
      },
      [&](int j, Index i, float sum) { dx[i] = scaled[j] - own[j] * s.alpha * sum; });
}

Response response(const LocalResponseNorm& s, double alpha) {
  const Index half = s.size / 2;
  return {s.rows * s.channels,
          s.channels,
          half < s.channels ? half : s.channels - 1,
          static_cast<float>(alpha / static_cast<double>(s.size)),
          static_cast<float>(s.beta),
          static_cast<float>(s.k)};
}

template <class... Parameters, class... Arrays>
void launch_response(const char* name, void (*staged)(Response, Parameters...), void (*again)(Response, Parameters...),
                     const Response& s, Arrays... arrays) {
  Grid grid{static_cast<unsigned>(ceil_div(s.n, kResponseTile)), kThreads};
  if (s.half > kMostStaged) {
    launch(name, again, grid, s, arrays...);
    return;
  }
  grid.dynamic_shared = sizeof(float) * static_cast<std::size_t>(kResponseTile + 2 * s.half);
  launch(name, staged, grid, s, arrays...);
}

}  // namespace

template <>
void local_response_norm_forward(const LocalResponseNorm& s, const float* x, float* y, float* saved) {
  launch_response("local_response_norm_forward_kernel", local_response_norm_forward_kernel<true>,
                  local_response_norm_forward_kernel<false>, response(s, s.alpha), x, y, saved);
}

template <>
void local_response_norm_backward(const LocalResponseNorm& s, const float* dy, const float* x, const float* saved,
                                  float* dx) {
  launch_response("local_response_norm_backward_kernel", local_response_norm_backward_kernel<true>,
                  local_response_norm_backward_kernel<false>, response(s, 2 * s.alpha * s.beta), dy, x, saved, dx);
}

// ---- columns: sums over rows ----

namespace {

constexpr int kRowsEach = 16;    // of a thread at least, and at a time where they stay in registers
constexpr Index kBlocks = 1024;  // about as many as fill a large GPU

// How an array (rows, channels) is cut: a block takes a chunk of rows and `across` columns, kThreads / across rows at a
// time. A column is a channel, or a vector of them.
struct Cut {
  Index rows, columns, groups, chunk, chunks;
  int across;  // a power of two

  explicit Cut(const NormShape& s, int width = 1) : rows(s.rows), columns(s.channels / width) {
    across = columns > 16 ? 32 : 8;
    groups = columns > 0 ? ceil_div(columns, across) : 1;
    const Index tiles = ceil_div(rows, tile()), blocks = groups < kBlocks ? kBlocks / groups : 1;
    chunk = tiles == 0 ? tile() : ceil_div(tiles, blocks) * tile();
    chunks = ceil_div(rows, chunk);
  }
  __host__ __device__ int high() const { return kThreads / across; }
  __host__ __device__ int tile() const { return high() * kRowsEach; }
  __host__ __device__ Index size(Index i) const { return i + 1 < chunks ? chunk : rows - i * chunk; }

  Grid grid() const { return {static_cast<unsigned>(groups * chunks), kThreads}; }
  Grid column_grid() const { return {static_cast<unsigned>(groups), kThreads}; }  // one block for all chunks
};

// What a thread of it does: rows begin + row, begin + row + high ... of its column.
struct Part {
  Index column, chunk, begin, end;
  int row;
  bool inside;

  __device__ explicit Part(const Cut& cut) {
    chunk = blockIdx.x / cut.groups;
    column = (blockIdx.x - chunk * cut.groups) * cut.across + threadIdx.x % cut.across;
    row = static_cast<int>(threadIdx.x) / cut.across;
    begin = chunk * cut.chunk;
    end = begin + cut.size(chunk);
    inside = column < cut.columns;
  }
};

// The sum over the threads of a column, for each of them.
template <class T>
__device__ T column_sum(const Cut& cut, T value) {
  LEC7_SHARED(parts, T[kThreads]);
  parts[threadIdx.x] = value;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % cut.across;
  value = parts[lane];
  for (int row = 1; row < cut.high(); ++row) value = value + parts[row * cut.across + lane];
  __syncthreads();
  return value;
}

// The sums over each chunk of term(row, column, element): partial (chunks, columns).
template <class Term>
__global__ void __launch_bounds__(kThreads) column_sums_kernel(Cut cut, Term term, Pair<float>* partial) {
  const Part part(cut);
  Pair<float> sum{};
  if (part.inside) {
#pragma unroll 4
    for (Index row = part.begin + part.row; row < part.end; row += cut.high()) {
      sum = sum + term(row, part.column, row * cut.columns + part.column);
    }
  }
  sum = column_sum(cut, sum);
  if (part.inside && part.row == 0) partial[part.chunk * cut.columns + part.column] = sum;
}

// Those over all chunks of one column.
__device__ Pair<double> sum_chunks(const Cut& cut, const Part& part, const Pair<float>* partial) {
  Pair<double> sum{};
  for (Index i = part.row; part.inside && i < cut.chunks; i += cut.high()) {
    const Pair<float> v = partial[i * cut.columns + part.column];
    sum = sum + Pair<double>{v.first, v.second};
  }
  return column_sum(cut, sum);
}

// ---- batch ----

// moments (chunks, channels): each chunk's mean, and the sum of the squares of the distances from it.
__global__ void __launch_bounds__(kThreads) batch_statistics_kernel(Cut cut, const float* x, Pair<double>* moments) {
  const Part part(cut);
  double count = 0, mean = 0, squares = 0;
  for (Index tile = part.begin; tile < part.end; tile += cut.tile()) {
    const Index rows = tile + cut.tile() < part.end ? cut.tile() : part.end - tile;
    float v[kRowsEach], sum = 0;
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
      const int row = part.row + j * cut.high();
      v[j] = part.inside && row < rows ? x[(tile + row) * cut.columns + part.column] : 0.0f;
      sum += v[j];
    }
    const float point = column_sum(cut, sum) / static_cast<float>(rows);
    Pair<float> about{};
#pragma unroll
    for (int j = 0; j < kRowsEach; ++j) {
      const float d = v[j] - point;
      if (part.row + j * cut.high() < rows) about = about + Pair<float>{d, d * d};
    }
    about = column_sum(cut, about);
    if (part.row != 0) continue;
    const double more = static_cast<double>(rows), share = more / (count + more), rest = about.first / more;
    const double delta = point + rest - mean;
    squares += about.second - about.first * rest + delta * delta * count * share;
    mean += delta * share;
    count += more;
  }
  if (part.inside && part.row == 0) moments[part.chunk * cut.columns + part.column] = {mean, squares};
}

// y = (x - mean) scale + offset.
struct BatchNorm {
  const float *gamma, *beta;
  float *running_mean, *running_var, *saved, *scale, *offset;
  double momentum, eps;
};

__global__ void __launch_bounds__(kThreads)
    batch_norm_channels_kernel(Cut cut, bool training, const Pair<double>* moments, BatchNorm o) {
  const Part part(cut);
  const Index c = part.column;
  const double n = static_cast<double>(cut.rows);
  double mean = 0, var = 0;
  if (training) {
    for (Index i = part.row; part.inside && i < cut.chunks; i += cut.high()) {
      mean += static_cast<double>(cut.size(i)) * moments[i * cut.columns + c].first;
    }
    mean = column_sum(cut, mean) / n;
    for (Index i = part.row; part.inside && i < cut.chunks; i += cut.high()) {
      const Pair<double> chunk = moments[i * cut.columns + c];
      const double delta = chunk.first - mean;
      var += chunk.second + static_cast<double>(cut.size(i)) * delta * delta;
    }
    var = column_sum(cut, var) / n;
  }
  if (!part.inside || part.row != 0) return;
  if (training) {
    if (var < 0) var = 0;  // rounding; NaN stays
    o.running_mean[c] = static_cast<float>((1 - o.momentum) * o.running_mean[c] + o.momentum * mean);
    o.running_var[c] = static_cast<float>((1 - o.momentum) * o.running_var[c] + o.momentum * var * (n / (n - 1)));
  } else {
    mean = o.running_mean[c];
    var = o.running_var[c];
  }
  const double inverse = 1 / sqrt(var + o.eps), slope = o.gamma[c] * inverse;
  const auto rounded = static_cast<float>(mean);
  o.saved[c] = rounded;
  o.saved[cut.columns + c] = static_cast<float>(inverse);
  o.scale[c] = static_cast<float>(slope);
  // The mean's own rounding: 1e4 in float32 is off by up to 5e-4.
  o.offset[c] = static_cast<float>(o.beta[c] + (rounded - mean) * slope);
}

// Columns are vectors.
template <int width>
__global__ void __launch_bounds__(kThreads)
    batch_norm_forward_kernel(Cut cut, const float* x, const float* mean, const float* scale, const float* offset,
                              float* y) {
  const Part part(cut);
  if (!part.inside) return;
  const Index c = part.column * width;
  const Floats<width> m = load<width>(mean + c), a = load<width>(scale + c), b = load<width>(offset + c);
#pragma unroll 4
  for (Index row = part.begin + part.row; row < part.end; row += cut.high()) {
    const Index i = row * cut.columns * width + c;
    Floats<width> v = load<width>(x + i);
#pragma unroll
    for (int j = 0; j < width; ++j) v.at[j] = (v.at[j] - m.at[j]) * a.at[j] + b.at[j];
    store(y + i, v);
  }
}

struct BatchTerms {
  const float *dy, *x, *mean;
  __device__ Pair<float> operator()(Index, Index c, Index i) const { return {dy[i], dy[i] * (x[i] - mean[c])}; }
};

// dx = scale dy + (slope (x - mean) + offset). dgamma and dbeta may be null; so may scale: no dx.
struct BatchGradients {
  const float *gamma, *saved;
  float *dgamma, *dbeta, *scale, *slope, *offset;
};

__global__ void __launch_bounds__(kThreads)
    batch_norm_gradients_kernel(Cut cut, const Pair<float>* partial, BatchGradients o) {
  const Part part(cut);
  Pair<double> sum{};
  if (partial != nullptr) sum = sum_chunks(cut, part, partial);
  if (!part.inside || part.row != 0) return;
  const Index c = part.column;
  const float inverse = o.saved[cut.columns + c];
  if (o.dgamma != nullptr) o.dgamma[c] = static_cast<float>(sum.second * inverse);
  if (o.dbeta != nullptr) o.dbeta[c] = static_cast<float>(sum.first);
  if (o.scale == nullptr) return;
  const double a = static_cast<double>(o.gamma[c]) * inverse, n = static_cast<double>(cut.rows);
  o.scale[c] = static_cast<float>(a);
  if (o.slope == nullptr) return;
  o.slope[c] = static_cast<float>(-a * inverse * inverse * sum.second / n);
  o.offset[c] = static_cast<float>(-a * sum.first / n);
}

template <int width, bool training>
__global__ void __launch_bounds__(kThreads)
    batch_norm_backward_kernel(Cut cut, const float* dy, const float* x, const float* mean, const float* scale,
                               const float* slope, const float* offset, float* dx) {
  const Part part(cut);
  if (!part.inside) return;
  const Index c = part.column * width;
  const Floats<width> a = load<width>(scale + c);
  Floats<width> m{}, b{}, constant{};
  if constexpr (training) {
    m = load<width>(mean + c);
    b = load<width>(slope + c);
    constant = load<width>(offset + c);
  }
#pragma unroll 4
  for (Index row = part.begin + part.row; row < part.end; row += cut.high()) {
    const Index i = row * cut.columns * width + c;
    Floats<width> g = load<width>(dy + i), v{};
    if constexpr (training) v = load<width>(x + i);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      g.at[j] = a.at[j] * g.at[j] + (training ? b.at[j] * (v.at[j] - m.at[j]) + constant.at[j] : 0.0f);
    }
    store(dx + i, g);
  }
}

// run<width>(cut of vectors)
template <class Run>
void with_vectors(const NormShape& s, std::initializer_list<const void*> arrays, Run&& run) {
  if (s.channels % 4 == 0 && in_fours(arrays)) run.template operator()<4>(Cut(s, 4));
  else run.template operator()<1>(Cut(s, 1));
}

Index padded(Index channels) { return (channels + 3) / 4 * 4; }

}  // namespace

template <>
void batch_norm_forward(const NormShape& s, const BatchNormOptions& options, const float* x, const float* gamma,
                        const float* beta, float* running_mean, float* running_var, float* y, float* saved) {
  const Cut cut(s);
  Buffer<Pair<double>> moments(options.training ? cut.chunks * s.channels : 0);
  Buffer<float> coefficients(2 * padded(s.channels));
  float *const scale = coefficients.data(), *const offset = scale + padded(s.channels);
  if (options.training) {
    launch("batch_statistics_kernel", batch_statistics_kernel, cut.grid(), cut, x, moments.data());
  }
  launch("batch_norm_channels_kernel", batch_norm_channels_kernel, cut.column_grid(), cut, options.training,
         moments.data(),
         BatchNorm{gamma, beta, running_mean, running_var, saved, scale, offset, options.momentum, options.eps});
  with_vectors(s, {x, y, saved}, [&]<int width>(const Cut& vectors) {
    launch("batch_norm_forward_kernel", batch_norm_forward_kernel<width>, vectors.grid(), vectors, x, saved, scale,
           offset, y);
  });
}

template <>
void batch_norm_backward(const NormShape& s, bool training, const float* dy, const float* x, const float* gamma,
                         const float* saved, float* dx, float* dgamma, float* dbeta) {
  const Cut cut(s);
  const bool wants_sums = dgamma != nullptr || dbeta != nullptr || training;
  Buffer<Pair<float>> partial(wants_sums ? cut.chunks * s.channels : 0);
  Buffer<float> coefficients(dx == nullptr ? 0 : 3 * padded(s.channels));
  float* const scale = coefficients.data();
  float* const slope = dx != nullptr && training ? scale + padded(s.channels) : nullptr;
  float* const offset = slope == nullptr ? nullptr : slope + padded(s.channels);
  if (wants_sums) {
    launch("batch_norm_sums_kernel", column_sums_kernel<BatchTerms>, cut.grid(), cut, BatchTerms{dy, x, saved},
           partial.data());
  }
  launch("batch_norm_gradients_kernel", batch_norm_gradients_kernel, cut.column_grid(), cut, partial.data(),
         BatchGradients{gamma, saved, dgamma, dbeta, scale, slope, offset});
  if (dx == nullptr) return;
  with_vectors(s, {dy, x, saved, dx}, [&]<int width>(const Cut& vectors) {
    const auto kernel = training ? batch_norm_backward_kernel<width, true> : batch_norm_backward_kernel<width, false>;
    launch("batch_norm_backward_kernel", kernel, vectors.grid(), vectors, dy, x, saved, scale, slope, offset, dx);
  });
}

// ---- layer ----

namespace {

template <class Team>
__global__ void __launch_bounds__(Team::block)
    layer_norm_forward_kernel(NormShape s, float eps, const float* x, const float* gamma, const float* beta, float* y,
                              float* saved) {
  const Row<Team> row(x, s.rows, s.channels);
  const float n = static_cast<float>(s.channels);
  float sum = 0;
  row.for_each([&](Index, float v) { sum += v; });
  const float point = Team::sum(sum) / n;  // the mean, up to rounding
  Pair<float> about{};
  row.for_each([&](Index, float v) {
    const float d = v - point;
    about = about + Pair<float>{d, d * d};
  });
  about = Team::sum(about);
  const float rest = about.first / n, var = about.second / n - rest * rest;
  const float inverse = 1 / sqrtf((var < 0 ? 0 : var) + eps);
  const Index r = Team::row();
  if (r >= s.rows) return;
  if (Team::rank() == 0) {
    saved[r] = point + rest;
    saved[s.rows + r] = inverse;
  }
  float* const out = y + r * s.channels;
  row.for_each([&](Index k, float v) { out[k] = ((v - point) - rest) * inverse * gamma[k] + beta[k]; });
}

template <class Team>
__global__ void __launch_bounds__(Team::block)
    layer_norm_backward_kernel(NormShape s, const float* dy, const float* x, const float* gamma, const float* saved,
                               float* dx) {
  const Row<Team> row(x, s.rows, s.channels), gradient(dy, s.rows, s.channels);
  const Index r = Team::row();
  const float mean = r < s.rows ? saved[r] : 0.0f, inverse = r < s.rows ? saved[s.rows + r] : 0.0f;
  Pair<float> sum{};
  row.for_each(
      [&](Index k, float v, float g) {
        g *= gamma[k];
        sum = sum + Pair<float>{g, g * ((v - mean) * inverse)};
      },
      gradient);
  sum = Team::sum(sum);
  const float n = static_cast<float>(s.channels), mean_g = sum.first / n, mean_gx = sum.second / n;
  float* const out = dx + r * s.channels;
  row.for_each(
      [&](Index k, float v, float g) { out[k] = (g * gamma[k] - mean_g - (v - mean) * inverse * mean_gx) * inverse; },
      gradient);
}

struct LayerTerms {
  const float *dy, *x, *mean, *inverse;
  __device__ Pair<float> operator()(Index row, Index, Index i) const {
    return {dy[i], dy[i] * ((x[i] - mean[row]) * inverse[row])};
  }
};

__global__ void __launch_bounds__(kThreads)
    layer_norm_gradients_kernel(Cut cut, const Pair<float>* partial, float* dgamma, float* dbeta) {
  const Part part(cut);
  const Pair<double> sum = sum_chunks(cut, part, partial);
  if (!part.inside || part.row != 0) return;
  if (dgamma != nullptr) dgamma[part.column] = static_cast<float>(sum.second);
  if (dbeta != nullptr) dbeta[part.column] = static_cast<float>(sum.first);
}

}  // namespace

template <>
void layer_norm_forward(const NormShape& s, double eps, const float* x, const float* gamma, const float* beta, float* y,
                        float* saved) {
  with_team(s.rows, s.channels, [&]<class Team>(const Grid& grid) {
    launch("layer_norm_forward_kernel", layer_norm_forward_kernel<Team>, grid, s, static_cast<float>(eps), x, gamma,
           beta, y, saved);
  });
}

template <>
void layer_norm_backward(const NormShape& s, const float* dy, const float* x, const float* gamma, const float* saved,
                         float* dx, float* dgamma, float* dbeta) {
  if (dx != nullptr) {
    with_team(s.rows, s.channels, [&]<class Team>(const Grid& grid) {
      launch("layer_norm_backward_kernel", layer_norm_backward_kernel<Team>, grid, s, dy, x, gamma, saved, dx);
    });
  }
  if (dgamma == nullptr && dbeta == nullptr) return;
  const Cut cut(s);
  Buffer<Pair<float>> partial(cut.chunks * s.channels);
  launch("layer_norm_sums_kernel", column_sums_kernel<LayerTerms>, cut.grid(), cut,
         LayerTerms{dy, x, saved, saved + s.rows}, partial.data());
  launch("layer_norm_gradients_kernel", layer_norm_gradients_kernel, cut.column_grid(), cut, partial.data(), dgamma,
         dbeta);
}

}  // namespace lec7::cuda
