#include "lec7/pool.h"

#include "arrays.h"
#include "module.h"
#include "parse.h"
#include "window.h"

namespace lec7::bindings {
namespace {

// One op, "max_pool2d".
struct Op {
  std::string name;
  int spatial;

  PoolOptions options(py::handle kernel_size, py::handle stride, py::handle padding, py::handle dilation,
                      bool ceil) const {
    const PerAxis kernel = parse_per_axis(name, "kernel_size", kernel_size, spatial);
    return {kernel, stride.is_none() ? kernel : parse_per_axis(name, "stride", stride, spatial),
            parse_per_axis(name, "dilation", dilation, spatial), parse_padding(name, padding, spatial), ceil};
  }
};

py::tuple max_forward(const Op& op, py::handle x_, const PoolOptions& options) {
  const Array x = float_array(op.name, "x", x_);
  const PoolShape shape = max_pool_shape(op.name, op.spatial, x.shape(), options);
  const Array y = new_array(x.dtype(), shape.y), argmax = new_array(DType::int32, shape.y);
  with_float(x.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(max_pool_forward<T>)(shape, x.data<T>(), y.data<T>(), argmax.data<std::int32_t>());
  });
  return to_tuple(y, argmax);
}

py::object max_backward(const Op& op, py::handle dy_, py::handle argmax_, py::handle x_shape_) {
  const Array dy = float_array(op.name, "dy", dy_), argmax = integer_array(op.name, "argmax", argmax_);
  const Shape x_shape = parse_shape(op.name, "x_shape", x_shape_);
  const MaxPoolBackwardShape shape = max_pool_backward_shape(op.name, op.spatial, dy.shape(), argmax.shape(), x_shape);
#if defined(LEC7_BACKEND_CUDA)  // whose kernel cannot tell the host
  check_indices(op.name, {"argmax", argmax.shape()}, indices_of(argmax), -1, shape.cells_in);
#endif
  const Array dx = new_array(dy.dtype(), x_shape);
  Index bad = -1;
  with_float(dy.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    bad = LEC7_PICK(max_pool_backward<T>)(shape, dy.data<T>(), indices_of(argmax), dx.data<T>());
  });
  if (bad >= 0) {
    fail_at(op.name, {"argmax", argmax.shape()}, bad, std::to_string(indices_of(argmax)[bad]),
            "outside [-1, " + std::to_string(shape.cells_in) + ")");
  }
  return dx.object();
}

py::object sum_forward(const Op& op, py::handle x_, const PoolOptions& options, Average average) {
  const Array x = float_array(op.name, "x", x_);
  const PoolShape shape = pool_shape(op.name, op.spatial, x.shape(), options);
  const Array y = new_array(x.dtype(), shape.y);
  with_float(x.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(sum_pool_forward<T>)(shape, average, x.data<T>(), y.data<T>());
  });
  return y.object();
}

py::object sum_backward(const Op& op, py::handle dy_, py::handle x_shape_, const PoolOptions& options,
                        Average average) {
  const Array dy = float_array(op.name, "dy", dy_);
  const Shape x_shape = parse_shape(op.name, "x_shape", x_shape_);
  const PoolShape shape = pool_backward_shape(op.name, op.spatial, dy.shape(), x_shape, options);
  const Array dx = new_array(dy.dtype(), x_shape);
  with_float(dy.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(sum_pool_backward<T>)(shape, average, dy.data<T>(), dx.data<T>());
  });
  return dx.object();
}

Average average_of(bool count_padding) { return count_padding ? Average::padded_cells : Average::cells; }

void bind_rank(py::module_& m, int spatial) {
  const auto named = [&](const char* family) { return Op{family + std::to_string(spatial) + "d", spatial}; };
  const auto kernel_size = py::arg("kernel_size");
  const auto stride = py::arg("stride") = py::none();
  const auto padding = py::arg("padding") = 0;
  const auto dilation = py::arg("dilation") = 1;
  const auto ceil = py::arg("ceil") = false;
  const auto count_padding = py::arg("count_padding") = false;

  const Op max = named("max_pool"), avg = named("avg_pool"), sum = named("sum_pool");
  m.def((max.name + "_forward").c_str(),
        [op = max](py::handle x, py::handle k, py::handle s, py::handle p, py::handle d, bool ceil) {
          return max_forward(op, x, op.options(k, s, p, d, ceil));
        },
        py::arg("x"), py::kw_only(), kernel_size, stride, padding, dilation, ceil);
  m.def((max.name + "_backward").c_str(),
        [op = max](py::handle dy, py::handle argmax, py::handle x_shape) {
          return max_backward(op, dy, argmax, x_shape);
        },
        py::arg("dy"), py::arg("argmax"), py::kw_only(), py::arg("x_shape"));
  m.def((avg.name + "_forward").c_str(),
        [op = avg](py::handle x, py::handle k, py::handle s, py::handle p, py::handle d, bool ceil, bool counted) {
          return sum_forward(op, x, op.options(k, s, p, d, ceil), average_of(counted));
        },
        py::arg("x"), py::kw_only(), kernel_size, stride, padding, dilation, ceil, count_padding);
  m.def((avg.name + "_backward").c_str(),
        [op = avg](py::handle dy, py::handle x_shape, py::handle k, py::handle s, py::handle p, py::handle d, bool ceil,
                   bool counted) {
          return sum_backward(op, dy, x_shape, op.options(k, s, p, d, ceil), average_of(counted));
        },
        py::arg("dy"), py::kw_only(), py::arg("x_shape"), kernel_size, stride, padding, dilation, ceil, count_padding);
  m.def((sum.name + "_forward").c_str(),
        [op = sum](py::handle x, py::handle k, py::handle s, py::handle p, py::handle d, bool ceil) {
          return sum_forward(op, x, op.options(k, s, p, d, ceil), Average::none);
        },
        py::arg("x"), py::kw_only(), kernel_size, stride, padding, dilation, ceil);
  m.def((sum.name + "_backward").c_str(),
        [op = sum](py::handle dy, py::handle x_shape, py::handle k, py::handle s, py::handle p, py::handle d,
                   bool ceil) { return sum_backward(op, dy, x_shape, op.options(k, s, p, d, ceil), Average::none); },
        py::arg("dy"), py::kw_only(), py::arg("x_shape"), kernel_size, stride, padding, dilation, ceil);
}

}  // namespace

void bind_pool(py::module_& m) {
  for (int spatial = 1; spatial <= kSpatialAxes; ++spatial) bind_rank(m, spatial);
}

}  // namespace lec7::bindings
