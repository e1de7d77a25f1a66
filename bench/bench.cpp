#include "bench.h"

#include <exception>
#include <iostream>
#include <random>

namespace lec7::bench {
namespace {

std::vector<void (*)()>& rows_of_files() {
  static std::vector<void (*)()> functions;
  return functions;
}

}  // namespace

std::vector<float> uniform(Index count, float scale) {
  std::minstd_rand generator(1);
  std::uniform_real_distribution<float> distribution(-scale, scale);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

Integers::Integers(Index count, Index below) : Buffer(count) {
  std::minstd_rand generator(1);
  std::uniform_int_distribution<std::int32_t> uniform(0, static_cast<std::int32_t>(below - 1));
  std::vector<std::int32_t> values(static_cast<std::size_t>(count));
  for (std::int32_t& value : values) value = uniform(generator);
  copy_in(data(), values);
}

void add(const std::string& op, const Numbers& numbers, const std::function<void(benchmark::State&)>& run) {
  std::string name = op;
  for (const auto& [letter, number] : numbers) name.append("/").append(letter).append(std::to_string(number));
  configure(*benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMicrosecond));
}

Rows::Rows(void (*add_rows)()) { rows_of_files().push_back(add_rows); }

}  // namespace lec7::bench

int main(int argc, char** argv) try {
  using namespace lec7;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  bench::prepare();
  for (const auto add_rows : bench::rows_of_files()) add_rows();
  return benchmark::RunSpecifiedBenchmarks() > 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
