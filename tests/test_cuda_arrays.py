"""Arrays on a GPU, or in the host build's memory: made, viewed, shared, freed; the rest is refused."""

import gc
import weakref

import numpy as np
import pytest

from lec7 import _cpu

DTYPES = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)


@pytest.fixture
def x(rng):
    return rng.standard_normal((3, 4, 5), np.float32)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 0, 3), (2, 3, 4)])
def test_arrays_go_there_and_back(cuda, shape, kind):
    array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 3).astype(kind)
    device = cuda.to_device(array)
    assert (device.shape, device.dtype, device.ndim) == (array.shape, array.dtype, array.ndim)
    assert (device.size, device.nbytes) == (array.size, array.nbytes)
    back = device.numpy()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    strided = np.repeat(array[..., None], 2, axis=-1)[..., 1]
    np.testing.assert_array_equal(cuda.to_device(strided).numpy(), array)


def test_views_share_memory(cuda, x):
    device = cuda.to_device(x)
    for index in (0, -1, slice(1, 3), slice(-2, None), slice(2, 1), None):
        np.testing.assert_array_equal(device[index].numpy(), x[index])
    for shape in ((60,), (-1, 5), (2, -1, 3)):
        np.testing.assert_array_equal(device.reshape(*shape).numpy(), x.reshape(shape))
        np.testing.assert_array_equal(device.reshape(shape).numpy(), x.reshape(shape))
    copy = device.copy()
    device[1][...] = x[0]
    device[2].fill(7)
    np.testing.assert_array_equal(device.numpy(), [x[0], x[0], np.full((4, 5), 7)])
    np.testing.assert_array_equal(copy.numpy(), x)
    view = device[0]
    del device
    gc.collect()
    np.testing.assert_array_equal(view.numpy(), x[0])


def test_sums_and_transposes(cuda, x):
    device = cuda.to_device(x)
    for axes in ((2, 0, 1), (0, 2, 1), (0, 1, 2)):
        np.testing.assert_array_equal(device.transpose(*axes).numpy(), x.transpose(axes))
    total = device + device
    np.testing.assert_array_equal(total.numpy(), x + x)
    same = total
    total += device
    assert total is same
    np.testing.assert_array_equal(same.numpy(), x + x + x)
    number = cuda.to_device(np.float32(1.5))
    assert (float(number), number.item(), int(number)) == (1.5, 1.5, 1)
    assert (f"{number:.2f}", f"{number}") == ("1.50", repr(number))


@pytest.mark.parametrize("shift", [0, 1])
def test_half_types_round_to_the_nearest(cuda, rng, shift):
    # Halfway cases to the even one, subnormal and too large numbers, and neighbours of all of them.
    x = np.concatenate([rng.standard_normal(1000), 2.0 ** np.arange(-30, 17), [0, -0.0, np.inf, -np.inf]])
    x = np.concatenate([x, x * (1 + 2**-11), x * (1 + 3 * 2**-11), x * (1 + 2**-8), x * (1 + 3 * 2**-8)])
    x = x.astype(np.float32)[shift:]
    device = cuda.to_device(np.append(np.zeros(shift, np.float32), x))[shift:]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(device.astype("float16").numpy(), x.astype(np.float16))
    bits = x.view(np.uint32)
    kept = ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32)
    narrow = device.astype("bfloat16")
    np.testing.assert_array_equal(narrow.astype(np.float32).numpy(), kept.view(np.float32))
    assert np.isnan(cuda.to_device(np.float32(np.nan)).astype("bfloat16").item())
    assert (narrow.dtype, narrow.nbytes, narrow[7].item()) == ("bfloat16", 2 * x.size, kept.view("f4")[7])
    again = narrow.astype("float16").astype("bfloat16")  # numbers that both have come back
    both = np.abs(kept.view(np.float32)) < 2**15
    both &= np.abs(kept.view(np.float32)) >= 2**-14
    np.testing.assert_array_equal(again.astype("float32").numpy()[both], kept.view(np.float32)[both])


def test_what_bfloat16_lacks_is_said(cuda, x):
    narrow = cuda.to_device(x).astype("bfloat16")
    with pytest.raises(TypeError, match=r"NumPy has no bfloat16; array.astype\(\"float32\"\)"):
        narrow.numpy()
    assert not hasattr(narrow, "__cuda_array_interface__")
    with pytest.raises(TypeError, match="to float32, float16 or bfloat16; got int32"):
        narrow.astype("int32")
    with pytest.raises(TypeError, match="from float32, float16 or bfloat16; the array is int32"):
        cuda.to_device(np.arange(3, dtype=np.int32)).astype("float16")
    with pytest.raises(TypeError, match="x must be float32 on a GPU; got dtype bfloat16"):
        cuda.relu_forward(narrow)
    back = cuda.from_dlpack(narrow)
    assert back.dtype == "bfloat16"
    np.testing.assert_array_equal(back.astype("float32").numpy(), narrow.astype("float32").numpy())


def test_what_is_not_possible_is_refused(cuda, x):
    device = cuda.to_device(x)
    for error, call in {
        (TypeError, "x must be a lec7.cuda.Array"): lambda: cuda.relu_forward(x),
        (TypeError, "x must be float32 on a GPU; got dtype float64"): lambda: cuda.relu_forward(
            cuda.to_device(x.astype(float))
        ),
        (TypeError, "does not read a GPU's memory"): lambda: np.asarray(device),
        (TypeError, "not implemented|not supported|unsupported"): lambda: x + device,
        (TypeError, "float16, float32, float64, int32"): lambda: cuda.to_device(x.astype(np.complex64)),
        (TypeError, "dtype|value"): lambda: device.__setitem__(..., x.astype(float)),
        (ValueError, "shapes are equal"): lambda: device.__setitem__(..., x[0]),
        (ValueError, "same shape"): lambda: device + device[0],
        (ValueError, "number of elements"): lambda: device.reshape(7, -1),
        (ValueError, "axes are each"): lambda: device.transpose(0, 0, 1),
        (ValueError, "one element"): lambda: float(device),
        (IndexError, "out of range"): lambda: device[3],
        (IndexError, "step 1"): lambda: device[::2],
        (IndexError, "first axis"): lambda: device[0, 1],
        (IndexError, "all of it"): lambda: device.__setitem__(0, x[0]),
        (TypeError, "pass a NumPy array"): lambda: cuda.attention_forward(
            *[device.reshape(1, 3, 4, 5)] * 3, key_lengths=cuda.to_device(np.array([4]))
        ),
    }.items():
        with pytest.raises(error[0], match=error[1]):
            call()
    with pytest.raises(TypeError, match="does not read a GPU"):
        _cpu.relu_backward(device, x)


def test_arrays_that_overlap(cuda, rng):
    x = rng.standard_normal((4, 5), np.float32)
    device = cuda.to_device(x)
    device[0:3][...] = device[1:4]
    np.testing.assert_array_equal(device.numpy(), x[[1, 2, 3, 3]])
    device[...] = device
    view = device[0:3]
    with pytest.raises(ValueError, match="overlaps"):
        view += device[1:4]
    for shape in ((1,) * 9, (2**40, 2**40), (0, -1)):
        with pytest.raises(ValueError, match="reshape"):
            device.reshape(shape)
    with pytest.raises(TypeError, match="makes no array"):
        cuda.to_device([[1.0], [1.0, 2.0]])
    np.testing.assert_array_equal(cuda.zeros((2, 3)).numpy(), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="axes"):
        cuda.lstm_forward(*[device] * 6, lengths=np.zeros((1,) * 9, int))


def test_a_freed_array_is_refused(cuda, x):
    device = cuda.to_device(x)
    view = device[0]
    before = cuda.memory_info()["in_use"]
    device.free()
    device.free()
    assert cuda.memory_info()["in_use"] < before
    for array in (device, view):
        for call in (array.numpy, array.copy, lambda a=array: cuda.relu_forward(a), lambda a=array: a + a):
            with pytest.raises(ValueError, match="was freed"):
                call()
        assert "freed" in repr(array)


def test_memory_that_is_not_there_is_a_memory_error(cuda, x):
    column, row = (cuda.to_device(np.ones(shape, np.float32)) for shape in ((1 << 20, 0), (0, 1 << 20)))
    with pytest.raises(MemoryError):
        cuda.matmul(column, row)
    np.testing.assert_array_equal(cuda.relu_forward(cuda.to_device(x)).numpy(), np.maximum(x, 0))
    cuda.empty_cache()
    assert set(cuda.memory_info()) == {"in_use", "peak", "cached", "limit", "free", "total"}


def test_the_most_memory_in_use_is_counted(cuda):
    cuda.reset_peak_memory()
    before = cuda.memory_info()["in_use"]
    cuda.zeros((1 << 20,)).free()
    assert cuda.memory_info()["peak"] >= before + (4 << 20)
    cuda.synchronize()
    cuda.reset_peak_memory()
    assert cuda.memory_info()["peak"] == cuda.memory_info()["in_use"] < before + (4 << 20)


def test_device_info(cuda):
    info = cuda.device_info()
    assert info["name"]
    assert info["compute_capability"] >= (7, 5)
    assert info["multiprocessors"] > 0
    assert info["float32_flops"] > info["bandwidth"] > 0
    assert info["half_flops"] >= 4 * info["float32_flops"]
    assert (info["tf32_flops"] > 0) == (info["compute_capability"] >= (8, 0))
    if "host" in info["name"]:  # 4 multiprocessors of 1 GHz with 64 FMAs, as an A100 has; 128 bits of 2 GHz
        assert (info["float32_flops"], info["tf32_flops"], info["bandwidth"]) == (512e9, 4096e9, 32e9)


@pytest.mark.parametrize("kind", DTYPES)
def test_dlpack_shares_memory(cuda, kind):
    array = (np.arange(24) % 5).reshape(2, 3, 4).astype(kind)
    device = cuda.to_device(array)
    shared = cuda.from_dlpack(device)
    if kind is np.float32:
        device.fill(3)
        array[...] = 3
    del device
    gc.collect()
    np.testing.assert_array_equal(shared.numpy(), array)
    interface = shared.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"]) == (array.shape, array.dtype.str)
    with pytest.raises(TypeError, match="__dlpack__"):
        cuda.from_dlpack([1, 2])


def test_dlpack_with_numpy(cuda, x):
    """The host build's memory is NumPy's own."""
    if cuda.__name__ != "lec7._cuda_host":
        pytest.skip("NumPy does not read a GPU's memory")
    device = cuda.to_device(x)
    seen = np.from_dlpack(device)
    device.fill(2)
    np.testing.assert_array_equal(seen, 2)
    mine = x.copy()
    taken = cuda.from_dlpack(mine)
    taken.fill(1)
    np.testing.assert_array_equal(mine, 1)
    with pytest.raises(ValueError, match="contiguous"):
        cuda.from_dlpack(x.transpose(2, 0, 1))


def test_streams_nest_and_outlive_their_arrays(cuda, x):
    with cuda.Stream() as outer:
        first = cuda.to_device(x)
        with cuda.Stream():
            second = cuda.relu_forward(cuda.to_device(x))
            np.testing.assert_array_equal(second.numpy(), np.maximum(x, 0))
        first += first
    outer.synchronize()
    np.testing.assert_array_equal(first.numpy(), x + x)
    del outer
    gc.collect()
    first.free()
    second.free()


def test_a_graph_refuses_to_wait_and_to_record_twice(cuda, x):
    device, graph = cuda.to_device(x), cuda.Graph()
    with pytest.raises(RuntimeError, match="recorded nothing"):
        graph.replay()
    for wait in (device.numpy, cuda.synchronize, lambda: float(cuda.global_norm(device))):
        with pytest.raises(RuntimeError, match="while a graph records"), graph:
            wait()
    with pytest.raises(RuntimeError, match="copies from the host"), cuda.Graph():
        device[...] = x
    graph = cuda.Graph()
    with graph:
        device += device
    np.testing.assert_array_equal(device.numpy(), x)
    graph.replay()
    graph.replay()
    np.testing.assert_array_equal(device.numpy(), 4 * x)
    with pytest.raises(RuntimeError, match="already"), graph:
        pass


def test_each_replay_asks_the_host_for_numbers(cuda, x):
    params, grads = cuda.to_device(np.zeros(3, np.float32)), cuda.to_device(np.ones(3, np.float32))
    seen, count = [], 0

    def lr():
        nonlocal count
        count += 1
        return count / 4

    graph = cuda.Graph()
    assert cuda.recording() is None
    with graph:
        assert cuda.recording() is graph
        assert graph.each_replay(lambda: seen.append(count)) is None
        rate, big = graph.each_replay(lr, "float64"), graph.each_replay(lambda: 2**64 - count, "int64")
        cuda.sgd_update_(params, grads, lr=rate)
        with cuda.Stream():
            assert cuda.recording() is None  # what is done there is not recorded
        for bad in ("float32", "number"):
            with pytest.raises(ValueError, match="int64 or float64"):
                graph.each_replay(lr, bad)
    assert (cuda.recording(), count) == (None, 0)  # recording asks for nothing
    with pytest.raises(RuntimeError, match="only while it records"):
        graph.each_replay(lr, "float64")
    for replay in (1, 2, 3):
        graph.replay()
        assert (float(rate), int(big)) == (replay / 4, -replay)
    assert seen == [0, 1, 2]
    np.testing.assert_array_equal(params.numpy(), np.full(3, -(1 + 2 + 3) / 4, np.float32))


def test_a_number_that_fails_stops_the_replay(cuda):
    params, grads = cuda.to_device(np.zeros(3, np.float32)), cuda.to_device(np.ones(3, np.float32))
    numbers = iter([1.0, None, "x"])
    with cuda.Graph() as graph:
        cuda.sgd_update_(params, grads, lr=graph.each_replay(lambda: next(numbers), "float64"))
    graph.replay()
    for error in (TypeError, TypeError, StopIteration):
        with pytest.raises(error):
            graph.replay()
    np.testing.assert_array_equal(params.numpy(), np.full(3, -1, np.float32))


def test_a_graph_that_refers_to_itself_is_collected(cuda):
    class Owner:
        def call(self):
            pass

    owner = Owner()
    with cuda.Graph() as graph:
        graph.each_replay(owner.call)
    owner.graph, gone = graph, weakref.ref(owner)
    del owner, graph
    gc.collect()
    assert gone() is None


def test_graphs_record_inside_each_other(cuda):
    outer, inner = cuda.Graph(), cuda.Graph()
    with outer:
        with inner:
            assert cuda.recording() is inner
        assert cuda.recording() is outer
        with pytest.raises(RuntimeError, match="another one's replay"):
            inner.replay()


def test_numbers_that_replays_would_repeat_are_refused(cuda, x):
    device = cuda.to_device(x)
    for argument, call in (
        ("step", lambda: cuda.adam_update_(*[device] * 4, lr=0.1, step=1)),
        ("offset", lambda: cuda.dropout_forward(device, p=0.5, seed=1, offset=2)),
        ("offset", lambda: cuda.dropout_backward(device, p=0.5, seed=1)),
    ):
        with pytest.raises(RuntimeError, match=f"repeat this {argument} at every replay"), cuda.Graph():
            call()
    np.testing.assert_array_equal(device.numpy(), x)


def test_a_graph_keeps_what_it_uses(cuda, x):
    before = cuda.memory_info()["in_use"]
    device, total = cuda.to_device(x), cuda.zeros((1, *x.shape))
    with cuda.Graph() as graph:
        y = cuda.relu_forward(device)
        y += y[:]
        view = total[0]
        view += y
    del device, y, view
    filler = [cuda.to_device(np.full(x.shape, np.nan, np.float32)) for _ in range(4)]
    for _ in range(3):
        graph.replay()
    np.testing.assert_array_equal(total.numpy()[0], 6 * np.maximum(x, 0))
    del graph, total, filler
    gc.collect()
    assert cuda.memory_info()["in_use"] == before


def test_a_graph_keeps_results_of_another_graph(cuda, x):
    before = cuda.memory_info()["in_use"]
    device = cuda.to_device(x)
    with cuda.Graph() as first:
        y = cuda.relu_forward(device)
    with cuda.Graph() as second:
        z = y + y
    with pytest.raises(RuntimeError, match="a result of another graph; replay that one first"):
        second.replay()
    first.replay()
    del y
    for graph in (second, first, second):
        graph.replay()
        np.testing.assert_array_equal(z.numpy(), 2 * np.maximum(x, 0))
    del first, graph
    gc.collect()
    second.replay()
    np.testing.assert_array_equal(z.numpy(), 2 * np.maximum(x, 0))
    del device, second, z
    gc.collect()
    assert cuda.memory_info()["in_use"] == before


def test_memory_of_a_graphs_results_is_freed_once(cuda, x):
    """Dropped while it records, between replays, after the graph, or never replayed."""
    before = cuda.memory_info()["in_use"]
    device = cuda.to_device(x)
    for replays in (0, 1, 2):
        with cuda.Graph() as graph:
            y = cuda.relu_forward(device)
            y = y + y
            z = y + y
            view = z[1:]
        for _ in range(replays):
            graph.replay()
        del y
        for _ in range(replays):
            graph.replay()
        z.free()
        del graph, z
        gc.collect()
        del view
    del device
    assert cuda.memory_info()["in_use"] == before


def test_results_are_refused_until_the_first_replay(cuda, x):
    device = cuda.to_device(x)
    with cuda.Graph() as graph:
        y = cuda.relu_forward(device)
        number = graph.each_replay(lambda: 7, "int64")
    uses = y.numpy, y.copy, number.item, lambda: cuda.relu_forward(y), lambda: y[0], y.__dlpack__
    for use in uses:
        with pytest.raises(RuntimeError, match="not replayed yet"):
            use()
    graph.replay()
    for use in uses:
        use()
    assert int(number) == 7
    results = []

    def broken_off():
        results.append(cuda.relu_forward(device))
        cuda.synchronize()

    with pytest.raises(RuntimeError, match="while a graph records"), cuda.Graph():
        broken_off()
    with pytest.raises(RuntimeError, match="not replayed yet"):
        results[0].numpy()


def test_a_replay_on_an_array_that_was_freed_is_refused(cuda, x):
    device = cuda.to_device(x)
    with cuda.Graph() as graph:
        y = cuda.relu_forward(device)
    graph.replay()
    device.free()
    with pytest.raises(RuntimeError, match="an array that it uses was freed"):
        graph.replay()
    np.testing.assert_array_equal(y.numpy(), np.maximum(x, 0))


def test_only_the_graph_that_records_ends(cuda, x):
    device, other = cuda.to_device(x), cuda.Graph()
    with cuda.Graph() as graph:
        with pytest.raises(RuntimeError, match="it does not record now"):
            other.__exit__(None, None, None)
        with other, pytest.raises(RuntimeError, match="it records already"):
            graph.__enter__()
        assert cuda.recording() is graph
        y = cuda.relu_forward(device)
    with pytest.raises(RuntimeError, match="it does not record now"):
        graph.__exit__(None, None, None)
    graph.replay()
    np.testing.assert_array_equal(y.numpy(), np.maximum(x, 0))
