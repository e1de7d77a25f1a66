// Sliding windows, one cell at a time: what convolution and pooling are compared with.
#pragma once

#include "kernels.h"
#include "lec7/window.h"

namespace lec7::test {

// One axis: output cell o, tap k sees input cell o * stride + k * dilation - before.
struct Axis {
  Index in = 1, kernel = 1, stride = 1, dilation = 1, before = 0, after = 0;
  bool ceil = false;

  Index extent() const { return (kernel - 1) * dilation + 1; }
  Index cell(Index o, Index k) const { return o * stride + k * dilation - before; }
  bool exists(Index cell) const { return cell >= 0 && cell < in; }
  bool exists_padded(Index cell) const { return cell >= -before && cell < in + after; }
  // Counted, not divided: the windows that fit; with ceil also one that lacks less than a stride, unless it would begin
  // in the padding at the end.
  Index out() const {
    Index n = 0;
    while (cell(n, 0) + extent() <= in + after + (ceil ? stride - 1 : 0)) ++n;
    return ceil && n > 0 && cell(n - 1, 0) >= in ? n - 1 : n;
  }
};

// Three axes; a 1d or 2d op has axes of one cell in front.
struct Geometry {
  int spatial = 2;
  Axis axes[3];

  template <class Get>
  PerAxis each(Get&& get) const {
    return {get(axes[0]), get(axes[1]), get(axes[2])};
  }
  PerAxis kernel() const {
    return each([](const Axis& a) { return a.kernel; });
  }
  PerAxis stride() const {
    return each([](const Axis& a) { return a.stride; });
  }
  PerAxis dilation() const {
    return each([](const Axis& a) { return a.dilation; });
  }
  Padding padding() const {
    return {PaddingRule::numbers, each([](const Axis& a) { return a.before; }),
            each([](const Axis& a) { return a.after; })};
  }
  PerAxis in() const {
    return each([](const Axis& a) { return a.in; });
  }
  PerAxis out() const {
    return each([](const Axis& a) { return a.out(); });
  }
  Index cells_in() const { return axes[0].in * axes[1].in * axes[2].in; }
  Index cells_out() const { return axes[0].out() * axes[1].out() * axes[2].out(); }
  Index taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }

  // The shape (first, sizes of the op's own axes, last).
  Shape array(Index first, const PerAxis& sizes, Index last) const {
    Shape shape{first};
    for (int axis = 3 - spatial; axis < 3; ++axis) shape.append(sizes[axis]);
    shape.append(last);
    return shape;
  }

  // body(output cell, tap, input cell): all taps of all windows; the input cell is -1 in the padding, -2 beyond it.
  template <class Body>
  void for_each(Body&& body) const {
    const PerAxis outs = out();
    const auto& [d, h, w] = axes;
    Index output = 0;
    for (Index od = 0; od < outs[0]; ++od) {
      for (Index oh = 0; oh < outs[1]; ++oh) {
        for (Index ow = 0; ow < outs[2]; ++ow, ++output) {
          Index tap = 0;
          for (Index kd = 0; kd < d.kernel; ++kd) {
            for (Index kh = 0; kh < h.kernel; ++kh) {
              for (Index kw = 0; kw < w.kernel; ++kw, ++tap) {
                const Index id = d.cell(od, kd), ih = h.cell(oh, kh), iw = w.cell(ow, kw);
                const bool exists = d.exists(id) && h.exists(ih) && w.exists(iw);
                const bool padded = d.exists_padded(id) && h.exists_padded(ih) && w.exists_padded(iw);
                body(output, tap, exists ? (id * h.in + ih) * w.in + iw : padded ? -1 : -2);
              }
            }
          }
        }
      }
    }
  }

  std::string str() const {
    std::string result = text(spatial, "d");
    for (int axis = 3 - spatial; axis < 3; ++axis) {
      const Axis& a = axes[axis];
      result += text(" [in=", a.in, " kernel=", a.kernel, " stride=", a.stride, " dilation=", a.dilation,
                     " padding=", a.before, "+", a.after, a.ceil ? " ceil" : "", "]");
    }
    return result;
  }
};

// Any geometry with at least one window; `most_padding` may reach past the kernel.
inline Geometry random_geometry(Random& random, bool pooling) {
  Geometry g;
  g.spatial = static_cast<int>(1 + random.below(3));
  const bool ceil = pooling && random.below(2) == 1;
  for (int axis = 3 - g.spatial; axis < 3; ++axis) {
    Axis& a = g.axes[axis];
    do {
      a = {1 + random.below(8), 1 + random.below(4), 1 + random.below(4), 1 + random.below(3), 0, 0, ceil};
      const Index most = pooling ? a.extent() : a.extent() + 2;
      a.before = random.below(most);
      a.after = random.below(most);
    } while (a.out() < 1);
  }
  return g;
}

}  // namespace lec7::test
