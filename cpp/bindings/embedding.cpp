#include "lec7/embedding.h"

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

constexpr std::string_view kOp = "embedding";

py::object forward(py::handle tokens_, py::handle weight_) {
  const Array tokens = integer_array(kOp, "tokens", tokens_), weight = float_array(kOp, "weight", weight_);
  const EmbeddingShape shape = embedding_shape(tokens.shape(), indices_of(tokens), weight.shape());
  const Array y = new_array(weight.dtype(), shape.y);
  with_float(weight.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(embedding_forward<T>)(shape, indices_of(tokens), weight.data<T>(), y.data<T>());
  });
  return y.object();
}

py::object backward(py::handle dy_, py::handle tokens_, py::handle num_embeddings) {
  const Array dy = float_array(kOp, "dy", dy_), tokens = integer_array(kOp, "tokens", tokens_);
  const EmbeddingShape shape = embedding_backward_shape(dy.shape(), tokens.shape(), indices_of(tokens),
                                                        parse_integer(kOp, "num_embeddings", num_embeddings));
  const Array dweight = new_array(dy.dtype(), Shape{shape.embeddings, shape.features});
  with_float(dy.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(embedding_backward<T>)(shape, dy.data<T>(), indices_of(tokens), dweight.data<T>());
  });
  return dweight.object();
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("embedding_forward", &forward, py::arg("tokens"), py::arg("weight"));
  m.def("embedding_backward", &backward, py::arg("dy"), py::arg("tokens"), py::kw_only(), py::arg("num_embeddings"));
}

}  // namespace lec7::bindings
