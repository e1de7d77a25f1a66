// What the tests of kernels share: arrays of exactly their size, every ISA, comparison with naive loops in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "lec7/array.h"
#include "lec7/isa.h"
#include "lec7/parallel.h"

namespace lec7::test {

// Everything runs twice: on one thread, and on three threads with arrays that begin one element later. The second
// run must give the same bits.
inline bool second_run = false;
inline std::vector<std::uint64_t> results;  // hashes of what this run gave

// An allocation of exactly its size, so that AddressSanitizer sees one element out of bounds. It is born as 0xff bytes
// (NaN, -1): an element that a kernel leaves out shows.
template <class T>
class Array {
 public:
  explicit Array(Index n) : size_(n) {
    for (int run = 0; run < 2; ++run) {
      blocks_[run].reset(new T[static_cast<std::size_t>(n + run)]);
      std::memset(static_cast<void*>(blocks_[run].get()), 0xff, sizeof(T) * static_cast<std::size_t>(n + run));
    }
  }
  template <class U>
  explicit Array(const std::vector<U>& values) : Array(static_cast<Index>(values.size())) {
    for (int run = 0; run < 2; ++run) {
      for (Index i = 0; i < size_; ++i) blocks_[run][i + run] = static_cast<T>(values[i]);
    }
  }

  Index size() const { return size_; }
  T* data() const { return blocks_[second_run].get() + second_run; }
  T& operator[](Index i) const { return data()[i]; }
  std::vector<double> values() const { return std::vector<double>(data(), data() + size_); }

 private:
  Index size_;
  std::unique_ptr<T[]> blocks_[2];
};

// Numbers in [low, high), the same ones in every run of the program.
class Random {
 public:
  double uniform(double low = -1, double high = 1) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * static_cast<double>(state_ >> 40) / (1 << 24);
  }
  Index below(Index n) { return static_cast<Index>(uniform(0, static_cast<double>(n))); }

  template <class T>
  Array<T> array(Index n, double low = -1, double high = 1) {
    std::vector<double> values(static_cast<std::size_t>(n));
    for (double& v : values) v = uniform(low, high);
    return Array<T>(values);
  }

 private:
  std::uint64_t state_ = 20240607;
};

// body<float>(), then body<double>().
template <class Body>
void with_types(Body&& body) {
  {
    const Trying type("float32");
    body.template operator()<float>();
  }
  const Trying type("float64");
  body.template operator()<double>();
}

template <class Body>
void on_every_isa(Body&& body) {
  const std::string before = cpu::name(cpu::isa());
  for (const std::string& isa : cpu::usable_isas()) {
    cpu::set_isa(isa);
    std::vector<std::uint64_t> first;
    for (const bool second : {false, true}) {
      const Trying run(isa + (second ? ", 3 threads, shifted arrays" : ", 1 thread"));
      second_run = second;
      set_num_threads(second ? 3 : 1);
      results.clear();
      body();
      if (second) CHECK(results == first);  // neither threads nor alignment change a bit
      else first = results;
    }
    second_run = false;
  }
  cpu::set_isa(before);
}

// |got - want| <= k eps scale, with the same infinities and NaNs. The scale is that of the largest number, or of the
// tests' inputs where all of them cancel.
template <class T>
void check_close(const Array<T>& got, const std::vector<double>& want, double k,
                 const Place& place = Place::current()) {
  if (got.size() != static_cast<Index>(want.size())) {
    return report(place, text(got.size(), " elements, not ", want.size()));
  }
  double scale = 0.125;
  for (const double w : want) {
    if (std::isfinite(w)) scale = std::max(scale, std::abs(w));
  }
  const double bound = k * std::numeric_limits<T>::epsilon() * scale;
  std::uint64_t hash = 14695981039346656037u;
  Index worst = -1;
  double most = 0;
  for (Index i = 0; i < got.size(); ++i) {
    const double g = got[i], w = want[i];
    const bool alike =
        std::isfinite(g) && std::isfinite(w) ? std::abs(g - w) <= bound : g == w || (std::isnan(g) && std::isnan(w));
    const double error = std::isfinite(g - w) ? std::abs(g - w) : std::numeric_limits<double>::infinity();
    if (!alike && error > most) {
      worst = i;
      most = error;
    }
    std::uint64_t bits = 0;
    std::memcpy(&bits, &got[i], sizeof(T));
    hash = (hash ^ bits) * 1099511628211u;
  }
  results.push_back(hash);
  if (worst >= 0) {
    report(place, text("element ", worst, " of ", got.size(), " is ", static_cast<double>(got[worst]), ", not ",
                       want[worst], "; ", most / (std::numeric_limits<T>::epsilon() * scale), " eps, allowed are ", k));
  }
}

template <class T>
void check_same(const Array<T>& got, const std::vector<double>& want, const Place& place = Place::current()) {
  check_close(got, want, 0, place);
}

}  // namespace lec7::test
