"""The ops: plain functions on arrays, run by the backend that the arrays belong to.

NumPy arrays run on the compiled CPU backend, or on the readable NumPy reference inside
``with lec7.use_backend("reference"):``; a ``lec7.cuda.Array`` runs on its GPU. Nothing is moved between
them. Signatures and docstrings are the reference's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import ParamSpec, TypeVar

from lec7 import _cpu, reference

P = ParamSpec("P")
R = TypeVar("R")

_BACKENDS: dict[str, ModuleType] = {"cpu": _cpu, "reference": reference}
_backend: ContextVar[ModuleType] = ContextVar("lec7_backend", default=_cpu)
#: the CUDA backend and its arrays' type, once lec7.cuda has loaded it
_device: tuple[ModuleType, type] | None = None


def _use_device(module: ModuleType) -> None:
    global _device
    _device = module, module.Array


def _backend_of(args: tuple[object, ...]) -> ModuleType:
    """The backend of the first array on a device, or the one in use for NumPy's."""
    if _device is not None:
        module, array = _device
        for arg in args:
            first = arg[0] if isinstance(arg, list | tuple) and arg else arg
            if isinstance(first, array):
                return module
    return _backend.get()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops on NumPy arrays with another backend: "cpu" (the default) or "reference".

    Raises:  ValueError: the name is not a backend.
    """
    if name not in _BACKENDS:
        raise ValueError(f"use_backend: {name!r} is not a backend; choose one of {sorted(_BACKENDS)}")
    token = _backend.set(_BACKENDS[name])
    try:
        yield
    finally:
        _backend.reset(token)


def _op(of_reference: Callable[P, R]) -> Callable[P, R]:
    name = of_reference.__name__

    @functools.wraps(of_reference)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        return getattr(_backend_of(args), name)(*args, **kwargs)

    op.__module__ = __name__
    return op


linear_forward = _op(reference.linear_forward)
linear_backward = _op(reference.linear_backward)
matmul = _op(reference.matmul)

relu_forward = _op(reference.relu_forward)
relu_backward = _op(reference.relu_backward)
sigmoid_forward = _op(reference.sigmoid_forward)
sigmoid_backward = _op(reference.sigmoid_backward)
tanh_forward = _op(reference.tanh_forward)
tanh_backward = _op(reference.tanh_backward)

softmax_forward = _op(reference.softmax_forward)
softmax_backward = _op(reference.softmax_backward)
log_softmax_forward = _op(reference.log_softmax_forward)
log_softmax_backward = _op(reference.log_softmax_backward)
softmax_cross_entropy_forward = _op(reference.softmax_cross_entropy_forward)
softmax_cross_entropy_backward = _op(reference.softmax_cross_entropy_backward)
binary_cross_entropy_forward = _op(reference.binary_cross_entropy_forward)
binary_cross_entropy_backward = _op(reference.binary_cross_entropy_backward)
mean_squared_error_forward = _op(reference.mean_squared_error_forward)
mean_squared_error_backward = _op(reference.mean_squared_error_backward)

dropout_forward = _op(reference.dropout_forward)
dropout_backward = _op(reference.dropout_backward)

embedding_forward = _op(reference.embedding_forward)
embedding_backward = _op(reference.embedding_backward)

conv1d_forward = _op(reference.conv1d_forward)
conv1d_backward = _op(reference.conv1d_backward)
conv2d_forward = _op(reference.conv2d_forward)
conv2d_backward = _op(reference.conv2d_backward)
conv3d_forward = _op(reference.conv3d_forward)
conv3d_backward = _op(reference.conv3d_backward)
conv_transpose1d_forward = _op(reference.conv_transpose1d_forward)
conv_transpose1d_backward = _op(reference.conv_transpose1d_backward)
conv_transpose2d_forward = _op(reference.conv_transpose2d_forward)
conv_transpose2d_backward = _op(reference.conv_transpose2d_backward)
locally_connected2d_forward = _op(reference.locally_connected2d_forward)
locally_connected2d_backward = _op(reference.locally_connected2d_backward)

concat_forward = _op(reference.concat_forward)
concat_backward = _op(reference.concat_backward)
add_ = _op(reference.add_)

max_pool1d_forward = _op(reference.max_pool1d_forward)
max_pool1d_backward = _op(reference.max_pool1d_backward)
max_pool2d_forward = _op(reference.max_pool2d_forward)
max_pool2d_backward = _op(reference.max_pool2d_backward)
max_pool3d_forward = _op(reference.max_pool3d_forward)
max_pool3d_backward = _op(reference.max_pool3d_backward)
avg_pool1d_forward = _op(reference.avg_pool1d_forward)
avg_pool1d_backward = _op(reference.avg_pool1d_backward)
avg_pool2d_forward = _op(reference.avg_pool2d_forward)
avg_pool2d_backward = _op(reference.avg_pool2d_backward)
avg_pool3d_forward = _op(reference.avg_pool3d_forward)
avg_pool3d_backward = _op(reference.avg_pool3d_backward)
sum_pool1d_forward = _op(reference.sum_pool1d_forward)
sum_pool1d_backward = _op(reference.sum_pool1d_backward)
sum_pool2d_forward = _op(reference.sum_pool2d_forward)
sum_pool2d_backward = _op(reference.sum_pool2d_backward)
sum_pool3d_forward = _op(reference.sum_pool3d_forward)
sum_pool3d_backward = _op(reference.sum_pool3d_backward)

local_response_norm_forward = _op(reference.local_response_norm_forward)
local_response_norm_backward = _op(reference.local_response_norm_backward)
batch_norm_forward = _op(reference.batch_norm_forward)
batch_norm_backward = _op(reference.batch_norm_backward)
layer_norm_forward = _op(reference.layer_norm_forward)
layer_norm_backward = _op(reference.layer_norm_backward)

rnn_step_forward = _op(reference.rnn_step_forward)
rnn_step_backward = _op(reference.rnn_step_backward)
lstm_step_forward = _op(reference.lstm_step_forward)
lstm_step_backward = _op(reference.lstm_step_backward)
gru_step_forward = _op(reference.gru_step_forward)
gru_step_backward = _op(reference.gru_step_backward)
rnn_forward = _op(reference.rnn_forward)
rnn_backward = _op(reference.rnn_backward)
lstm_forward = _op(reference.lstm_forward)
lstm_backward = _op(reference.lstm_backward)
gru_forward = _op(reference.gru_forward)
gru_backward = _op(reference.gru_backward)

attention_forward = _op(reference.attention_forward)
attention_backward = _op(reference.attention_backward)

sgd_update_ = _op(reference.sgd_update_)
rmsprop_update_ = _op(reference.rmsprop_update_)
adam_update_ = _op(reference.adam_update_)
global_norm = _op(reference.global_norm)
scale_ = _op(reference.scale_)

__all__ = list(reference.__all__)
