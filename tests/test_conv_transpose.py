import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, honours_needs, normal, rejects, same_bits
from devices import DeviceOps
from numpy.lib.stride_tricks import sliding_window_view
from test_conv import algorithm

from lec7 import _cpu, layers, reference

GRADIENTS = ("dx", "dweight", "dbias")

# Shape of x, shape of weight, parameters.
CASES = [
    # 1d
    ((2, 5, 3), (3, 4, 3), {}),
    ((1, 1, 1), (1, 1, 1), {}),
    ((0, 7, 2), (3, 4, 2), {"padding": 1}),
    ((2, 6, 3), (4, 5, 3), {"stride": 2, "padding": ((1, 2),)}),
    ((2, 6, 4), (3, 6, 4), {"stride": 2, "padding": "same"}),
    ((2, 5, 4), (2, 3, 4), {"stride": 3, "padding": "same_lower"}),
    ((1, 4, 2), (2, 3, 2), {"stride": 3, "output_padding": 2}),
    ((2, 4, 6), (3, 2, 6), {"groups": 3, "stride": 2, "padding": (1,), "output_padding": (1,)}),
    ((2, 9, 8), (3, 1, 8), {"groups": 8, "padding": 2}),
    # 2d
    ((2, 4, 5, 3), (3, 3, 4, 3), {}),
    ((2, 5, 6, 8), (1, 1, 16, 8), {}),
    ((2, 3, 4, 8), (1, 1, 7, 8), {"stride": 2, "output_padding": 1}),
    ((0, 3, 3, 4), (3, 3, 2, 4), {"stride": 2, "padding": "same"}),
    ((2, 4, 3, 5), (4, 4, 6, 5), {"stride": 2, "padding": 1}),
    ((1, 3, 4, 6), (5, 2, 3, 6), {"stride": (3, 2), "padding": ((1, 0), (0, 1)), "output_padding": (2, 1)}),
    ((2, 4, 4, 6), (3, 3, 5, 6), {"stride": 2, "padding": "same"}),
    ((2, 4, 4, 6), (4, 2, 5, 6), {"stride": (1, 3), "padding": "same_lower"}),
    ((2, 4, 5, 6), (3, 3, 4, 6), {"groups": 2, "padding": 1}),
    ((1, 6, 5, 17), (3, 3, 1, 17), {"groups": 17, "stride": 2, "padding": 1, "output_padding": 1}),
    ((1, 3, 3, 2), (3, 3, 3, 2), {"padding": 2}),
    ((1, 7, 7, 33), (4, 4, 67, 33), {"stride": 2, "padding": 1}),
    ((1, 5, 5, 20), (3, 3, 150, 20), {"padding": 1}),
    ((2, 5, 4, 17), (2, 2, 33, 17), {"stride": 2}),
    ((2, 3, 7, 5), (1, 3, 4, 5), {"stride": (1, 3)}),
    ((0, 3, 2, 5), (2, 2, 4, 5), {"stride": 2}),
    ((1, 3, 2, 400), (2, 2, 70, 400), {"stride": 2}),
    ((2, 4, 3, 6), (2, 2, 2, 6), {"stride": 2, "groups": 3}),
    *(((2, 3, 4, n), (3, 2, 5, n), {"stride": 2, "padding": 1}) for n in SIZES),
    *(((2, 3, 4, 5), (2, 3, n, 5), {"stride": 2, "padding": (0, 1)}) for n in SIZES),
    *(((2, 2, n, 4), (3, 3, 6, 4), {"padding": 1}) for n in SIZES),
]


def functions(ops, x):
    name = f"conv_transpose{x.ndim - 2}d"
    return getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")


def forward_and_backward(parameters):
    def run(ops, x, weight, bias, dy):
        forward, backward = functions(ops, x)
        return forward(x, weight, bias, **parameters), *backward(dy, x, weight, **parameters)

    return run


def operands(rng, x_shape, weight_shape, parameters):
    x, weight = normal(rng, *x_shape), normal(rng, *weight_shape)
    forward, _ = functions(reference, x)
    y = forward(x, weight, **parameters)
    return x, weight, normal(rng, y.shape[-1]), normal(rng, *y.shape)


def test_conv_transpose_worked_examples():
    x, weight = np.array([1.0, 2, 3]).reshape(1, 3, 1), np.array([1.0, 10, 100]).reshape(3, 1, 1)

    def transpose(**parameters):
        return reference.conv_transpose1d_forward(x, weight, **parameters).ravel()

    np.testing.assert_array_equal(transpose(), [1, 12, 123, 230, 300])
    np.testing.assert_array_equal(transpose(padding=1), [12, 123, 230])
    np.testing.assert_array_equal(transpose(stride=2), [1, 10, 102, 20, 203, 30, 300])
    np.testing.assert_array_equal(transpose(stride=2, output_padding=1), [1, 10, 102, 20, 203, 30, 300, 0])
    np.testing.assert_array_equal(transpose(stride=2, padding="same"), [1, 10, 102, 20, 203, 30])
    np.testing.assert_array_equal(transpose(stride=2, padding="same_lower"), [10, 102, 20, 203, 30, 300])
    np.testing.assert_array_equal(
        transpose(stride=4, padding=((1, 0),)), [10, 100, 0, 2, 20, 200, 0, 3, 30, 300]
    )
    np.testing.assert_array_equal(
        transpose(stride=4, padding="same"), [1, 10, 100, 0, 2, 20, 200, 0, 3, 30, 300, 0]
    )
    dy = np.array([1.0, -1, 2, 0, 1]).reshape(1, 5, 1)
    dx, dweight, dbias = reference.conv_transpose1d_backward(dy, x, weight)
    np.testing.assert_array_equal(dx.ravel(), [191, 19, 102])
    np.testing.assert_array_equal(dweight.ravel(), [5, 3, 5])
    np.testing.assert_array_equal(dbias, [3])


def upsample_and_convolve(x, weight, bias, *, stride, before, after, output_padding):
    """The same another way: zeros between the cells of x, then every window times the turned filter."""
    size, kernel = np.array(x.shape[1:3]), np.array(weight.shape[:2])
    spread = np.zeros((x.shape[0], *((size - 1) * stride + 1), x.shape[3]), x.dtype)
    spread[:, :: stride[0], :: stride[1]] = x
    around = [
        (0, 0),
        *((k - 1, k - 1 + more) for k, more in zip(kernel, output_padding, strict=True)),
        (0, 0),
    ]
    windows = sliding_window_view(np.pad(spread, around), tuple(kernel), axis=(1, 2))
    y = np.einsum("nijcab,abfc->nijf", windows, weight[::-1, ::-1])
    end = np.array(y.shape[1:3]) - after
    return y[:, before[0] : end[0], before[1] : end[1]] + bias


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3), (3, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (4, 4)])
def test_conv_transpose_is_upsampling_and_convolution(stride, kernel, rng):
    x, weight = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((*kernel, 4, 3))
    bias = rng.standard_normal(4)
    for before, after in (((0, 0), (0, 0)), ((1, 0), (0, 2)), ((1, 1), (1, 1))):
        for output_padding in {(0, 0), (stride[0] - 1, stride[1] - 1)}:
            y = reference.conv_transpose2d_forward(
                x,
                weight,
                bias,
                stride=stride,
                padding=tuple(zip(before, after, strict=True)),
                output_padding=output_padding,
            )
            expected = upsample_and_convolve(
                x,
                weight,
                bias,
                stride=np.array(stride),
                before=before,
                after=np.array(after),
                output_padding=output_padding,
            )
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("x_shape", "weight_shape", "parameters"), CASES, ids=str)
def test_conv_transpose_is_adjoint_to_the_convolution(x_shape, weight_shape, parameters, rng):
    """<conv(a), x> = <a, conv_transpose(x)>, and conv_transpose(x) is that convolution's dx."""
    x, weight = rng.standard_normal(x_shape), rng.standard_normal(weight_shape)
    forward, backward = functions(reference, x)
    y = forward(x, weight, **parameters)
    conv = {key: value for key, value in parameters.items() if key != "output_padding"}
    a = rng.standard_normal(y.shape)
    convolve = getattr(reference, f"conv{x.ndim - 2}d_forward")
    np.testing.assert_allclose(np.vdot(convolve(a, weight, **conv), x), np.vdot(a, y), rtol=1e-10, atol=1e-10)
    dx, dweight, _ = getattr(reference, f"conv{x.ndim - 2}d_backward")(x, a, weight, **conv)
    np.testing.assert_allclose(y, dx, rtol=1e-12, atol=1e-12)
    gradients = backward(a, x, weight, **parameters)
    np.testing.assert_allclose(gradients[0], convolve(a, weight, **conv), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradients[1], dweight, rtol=1e-12, atol=1e-12)


def test_conv_transpose_same_multiplies_the_size(rng):
    for size in (1, 2, 5):
        for kernel in (1, 2, 3, 4, 7):
            for stride in (1, 2, 3, 5):
                for padding in ("same", "same_lower"):
                    x, weight = rng.standard_normal((1, size, 2)), rng.standard_normal((kernel, 3, 2))
                    for ops in (reference, _cpu):
                        y = ops.conv_transpose1d_forward(x, weight, stride=stride, padding=padding)
                        assert y.shape == (1, size * stride, 3)
                        conv = ops.conv1d_backward(
                            x, np.zeros_like(y), weight, stride=stride, padding=padding, needs=("dx",)
                        )
                        np.testing.assert_allclose(y, conv[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "parameters"), [c for c in CASES if np.prod(c[0]) + np.prod(c[1]) < 250]
)
def test_conv_transpose_gradients(x_shape, weight_shape, parameters, rng):
    def forward(x, weight, bias):
        return functions(reference, x)[0](x, weight, bias, **parameters)

    def backward(dy, x, weight, bias):
        return functions(reference, x)[1](dy, x, weight, **parameters)

    check_gradients(forward, backward, *operands(rng, x_shape, weight_shape, parameters)[:3])


@pytest.mark.parametrize(("x_shape", "weight_shape", "parameters"), CASES, ids=str)
def test_conv_transpose_agrees(x_shape, weight_shape, parameters, backend, rng):
    arrays = operands(rng, x_shape, weight_shape, parameters)
    with algorithm("direct", backend):
        agrees("conv", backend, forward_and_backward(parameters), *arrays)


def test_conv_transpose_by_winograd_agrees(backend, rng):
    """Its passes are those of the convolution, with that one's algorithms and errors."""
    for x_shape, weight_shape, parameters in (
        ((2, 13, 14, 33), (3, 3, 19, 33), {"padding": 1}),
        ((1, 12, 14, 40), (5, 5, 36, 40), {"padding": "same"}),
    ):
        x, weight, bias, dy = operands(rng, x_shape, weight_shape, parameters)
        results = []
        for name in ("direct", "fast"):
            with algorithm(name, backend):
                results.append(forward_and_backward(parameters)(backend, x, weight, bias, dy))
                agrees(
                    "conv" if name == "direct" else "conv_fast",
                    backend,
                    forward_and_backward(parameters),
                    *(x, weight, bias, dy),
                )
        direct = isinstance(backend, DeviceOps) and weight_shape[0] != 3
        assert np.array_equal(results[0][0], results[1][0]) == direct


def test_conv_transpose_without_bias_agrees(backend, rng):
    for x_shape, weight_shape, parameters in CASES[3:5] + CASES[13:15]:  # with a stride: direct
        x, weight, _, dy = operands(rng, x_shape, weight_shape, parameters)
        agrees("conv", backend, forward_and_backward(parameters), x, weight, None, dy)


def test_conv_transpose_honours_needs(backend, rng):
    for x_shape, weight_shape, parameters in CASES[3:4] + CASES[13:14]:
        x, weight, _, dy = operands(rng, x_shape, weight_shape, parameters)

        def backward(ops, needs, x=x, weight=weight, dy=dy, parameters=parameters):
            return functions(ops, x)[1](dy, x, weight, needs=needs, **parameters)

        honours_needs(backend, backward, GRADIENTS)


def test_conv_transpose_bits_do_not_depend_on_threads(backend, rng):
    for x_shape, weight_shape, parameters in (
        ((4, 200, 16), (5, 33, 16), {"padding": 2, "stride": 2}),
        ((3, 15, 17, 35), (4, 4, 19, 35), {"padding": 1, "stride": 2}),
        ((2, 14, 14, 24), (3, 3, 1, 24), {"padding": 1, "groups": 24, "stride": 2}),
        ((2, 16, 16, 32), (4, 4, 3, 32), {"padding": 1, "stride": 2}),
        ((2, 16, 17, 35), (2, 2, 37, 35), {"stride": 2}),
    ):
        arrays = operands(rng, x_shape, weight_shape, parameters)
        same_bits(backend, forward_and_backward(parameters), *arrays)


def test_conv_transpose_rejects_shapes():
    x, weight, bias = (
        np.zeros((8, 7, 9, 4), np.float32),
        np.zeros((3, 3, 16, 4), np.float32),
        np.zeros(16, np.float32),
    )
    for ops in (_cpu, reference):
        forward, backward = ops.conv_transpose2d_forward, ops.conv_transpose2d_backward
        for wrong in (x[..., :3], x[0], x[None], x[0, 0], x[:, :0], x[:, :, :0]):
            rejects(ValueError, ("conv_transpose2d", wrong.shape), forward, wrong, weight)
        for wrong in (weight[..., :3], weight[0], weight[None], weight[:0], weight[:, :, :0]):
            rejects(ValueError, ("conv_transpose2d", x.shape, wrong.shape), forward, x, wrong)
        for wrong in (bias[:1], bias[None], bias[:15]):
            rejects(ValueError, ("conv_transpose2d", wrong.shape), forward, x, weight, wrong)
        rejects(ValueError, ("conv_transpose2d", "groups", x.shape), forward, x, weight, groups=3)
        rejects(ValueError, ("conv_transpose2d", bias.shape), forward, x, weight, bias, groups=2)
        rejects(ValueError, ("conv_transpose1d", x.shape), ops.conv_transpose1d_forward, x, weight)
        for shape in ((8, 9, 11, 15), (8, 9, 10, 16), (1, 9, 11, 16), (8, 9, 16)):
            rejects(ValueError, ("conv_transpose2d", shape), backward, np.zeros(shape, np.float32), x, weight)
    rejects(
        TypeError,
        ("conv_transpose2d", "float64"),
        _cpu.conv_transpose2d_forward,
        x,
        weight.astype(np.float64),
    )
    rejects(TypeError, ("uint8", x.shape), _cpu.conv_transpose2d_forward, x.astype(np.uint8), weight)


def test_conv_transpose_rejects_parameters():
    x, weight = np.zeros((1, 3, 3, 4), np.float32), np.zeros((3, 3, 2, 4), np.float32)
    dy = np.zeros((1, 5, 5, 2), np.float32)
    wrong = [
        *({"stride": bad} for bad in (0, -1, (1, 0), (1, 1, 1), (1,), ())),
        *({"padding": bad} for bad in (-1, (1, -1), (1,), ((1, 1),), "full", "", 3, ((2, 3), (0, 0)))),
        *({"output_padding": bad} for bad in (-1, 1, (0, 1), (0,), (0, 0, 0))),
        {"stride": 2, "output_padding": 2},
        {"stride": 2, "output_padding": 1, "padding": "same"},
        *({"groups": bad} for bad in (0, -1, 3)),
    ]
    for ops in (_cpu, reference):
        for parameters in wrong:
            rejects(ValueError, ("conv_transpose2d",), ops.conv_transpose2d_forward, x, weight, **parameters)
            rejects(
                ValueError, ("conv_transpose2d",), ops.conv_transpose2d_backward, dy, x, weight, **parameters
            )
    for huge in (2**31, 2**62, 2**63 - 1):
        for parameters in (
            {"stride": huge},
            {"padding": huge},
            {"stride": 2**31 - 1, "output_padding": huge},
        ):
            rejects(ValueError, ("conv_transpose2d",), _cpu.conv_transpose2d_forward, x, weight, **parameters)
    rejects(ValueError, ("overflow",), _cpu.conv_transpose2d_forward, x, weight, stride=2**31 - 1)
    for name in ("stride", "padding", "output_padding"):
        for value in (1.5, None):
            rejects(TypeError, (name,), _cpu.conv_transpose2d_forward, x, weight, **{name: value})


def test_conv_transpose_layer_draws_each_filter_as_a_convolution_does(rng):
    """The weight is the initializer's (K..., C/groups, F), with filter f of group g where the op wants it."""
    numbered = np.arange(3 * 2 * 6, dtype=np.float32).reshape(3, 2, 6)
    layer = layers.ConvTranspose1d(
        4, 6, 3, rng=rng, groups=2, init=lambda shape, rng: numbered.reshape(shape)
    )
    weight = layer.params["weight"]
    assert weight.shape == (3, 3, 4)
    for group in range(2):
        for f in range(3):
            np.testing.assert_array_equal(
                weight[:, f, 2 * group : 2 * group + 2], numbered[:, :, 3 * group + f]
            )
