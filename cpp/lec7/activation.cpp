#include "lec7/activation.h"

namespace lec7 {

Activation parse_activation(std::string_view op, std::string_view text) {
  if (text == "relu") return Activation::relu;
  if (text == "sigmoid") return Activation::sigmoid;
  if (text == "tanh") return Activation::tanh;
  fail(op, "activation is None, \"relu\", \"sigmoid\" or \"tanh\"; got \"" + std::string(text) + "\"");
}

}  // namespace lec7
