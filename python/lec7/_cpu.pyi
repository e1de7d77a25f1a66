"""lec7's compiled CPU backend: the ops of lec7.ops on NumPy arrays. Documented in lec7.reference."""

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array: TypeAlias = NDArray[Any]  # float32 or float64, as the op's inputs
_Gradient: TypeAlias = _Array | None  # None: not among `needs`
_Needs: TypeAlias = Collection[str] | None
_Saved: TypeAlias = tuple[_Array, ...]
_Sizes: TypeAlias = int | Sequence[int]
_Padding: TypeAlias = int | str | Sequence[int] | Sequence[tuple[int, int]]

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    isas_built: list[str]
    isa: str
    openmp: int

class _CacheInfo(TypedDict):
    in_use: int
    cached: int
    limit: int

# --- the runtime ---

def build_info() -> _BuildInfo: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def get_conv_algorithm() -> str: ...
def set_conv_algorithm(name: str) -> None: ...
def cache_info() -> _CacheInfo: ...
def empty_cache() -> None: ...
def set_cache_limit(bytes: int) -> None: ...
def _set_isa(name: str) -> None: ...
def _isa() -> str: ...
def _usable_isas() -> list[str]: ...
def _set_poison(on: bool) -> None: ...
def _philox(seed: int, offset: int, first: int, count: int) -> NDArray[np.int32]: ...

# --- linear ---

def linear_forward(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, activation: str | None = None
) -> _Array: ...
def linear_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    y: ArrayLike | None = None,
    activation: str | None = None,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...
def matmul(a: ArrayLike, b: ArrayLike, *, transpose_a: bool = False, transpose_b: bool = False) -> _Array: ...

# --- activation ---

def relu_forward(x: ArrayLike) -> _Array: ...
def relu_backward(dy: ArrayLike, y: ArrayLike) -> _Array: ...
def sigmoid_forward(x: ArrayLike) -> _Array: ...
def sigmoid_backward(dy: ArrayLike, y: ArrayLike) -> _Array: ...
def tanh_forward(x: ArrayLike) -> _Array: ...
def tanh_backward(dy: ArrayLike, y: ArrayLike) -> _Array: ...

# --- softmax and losses ---

def softmax_forward(x: ArrayLike) -> _Array: ...
def softmax_backward(dy: ArrayLike, y: ArrayLike) -> _Array: ...
def log_softmax_forward(x: ArrayLike) -> _Array: ...
def log_softmax_backward(dy: ArrayLike, y: ArrayLike) -> _Array: ...
def softmax_cross_entropy_forward(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[_Array, _Array]: ...
def softmax_cross_entropy_backward(
    dy: ArrayLike,
    logits: ArrayLike,
    labels: ArrayLike,
    saved: ArrayLike,
    *,
    class_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> _Array: ...
def binary_cross_entropy_forward(
    logits: ArrayLike, targets: ArrayLike, *, reduction: str = "mean"
) -> _Array: ...
def binary_cross_entropy_backward(
    dy: ArrayLike, logits: ArrayLike, targets: ArrayLike, *, reduction: str = "mean"
) -> _Array: ...
def mean_squared_error_forward(x: ArrayLike, targets: ArrayLike, *, reduction: str = "mean") -> _Array: ...
def mean_squared_error_backward(
    dy: ArrayLike, x: ArrayLike, targets: ArrayLike, *, reduction: str = "mean"
) -> _Array: ...

# --- dropout, embedding ---

def dropout_forward(
    x: ArrayLike, *, p: float, seed: int, offset: int = 0, whole_channels: bool = False
) -> _Array: ...
def dropout_backward(
    dy: ArrayLike, *, p: float, seed: int, offset: int = 0, whole_channels: bool = False
) -> _Array: ...
def embedding_forward(tokens: ArrayLike, weight: ArrayLike) -> _Array: ...
def embedding_backward(dy: ArrayLike, tokens: ArrayLike, *, num_embeddings: int) -> _Array: ...

# --- conv ---

def conv1d_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
) -> _Array: ...
def conv1d_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
    y: ArrayLike | None = None,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...
def conv2d_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
) -> _Array: ...
def conv2d_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
    y: ArrayLike | None = None,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...
def conv3d_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
) -> _Array: ...
def conv3d_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
    y: ArrayLike | None = None,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...
def conv_transpose1d_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    output_padding: _Sizes = 0,
    groups: int = 1,
) -> _Array: ...
def conv_transpose1d_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    output_padding: _Sizes = 0,
    groups: int = 1,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...
def conv_transpose2d_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    output_padding: _Sizes = 0,
    groups: int = 1,
) -> _Array: ...
def conv_transpose2d_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    stride: _Sizes = 1,
    padding: _Padding = 0,
    output_padding: _Sizes = 0,
    groups: int = 1,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...
def locally_connected2d_forward(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, stride: _Sizes = 1
) -> _Array: ...
def locally_connected2d_backward(
    dy: ArrayLike, x: ArrayLike, weight: ArrayLike, *, stride: _Sizes = 1, needs: _Needs = None
) -> tuple[_Gradient, _Gradient, _Gradient]: ...

# --- merge ---

def concat_forward(arrays: Sequence[ArrayLike]) -> _Array: ...
def concat_backward(dy: ArrayLike, *, channels: Sequence[int]) -> list[_Array]: ...
def add_(y: _Array, x: ArrayLike) -> None: ...

# --- pool ---

def max_pool1d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> tuple[_Array, NDArray[np.int32]]: ...
def max_pool1d_backward(dy: ArrayLike, argmax: ArrayLike, *, x_shape: Sequence[int]) -> _Array: ...
def max_pool2d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> tuple[_Array, NDArray[np.int32]]: ...
def max_pool2d_backward(dy: ArrayLike, argmax: ArrayLike, *, x_shape: Sequence[int]) -> _Array: ...
def max_pool3d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> tuple[_Array, NDArray[np.int32]]: ...
def max_pool3d_backward(dy: ArrayLike, argmax: ArrayLike, *, x_shape: Sequence[int]) -> _Array: ...
def avg_pool1d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> _Array: ...
def avg_pool1d_backward(
    dy: ArrayLike,
    *,
    x_shape: Sequence[int],
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> _Array: ...
def avg_pool2d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> _Array: ...
def avg_pool2d_backward(
    dy: ArrayLike,
    *,
    x_shape: Sequence[int],
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> _Array: ...
def avg_pool3d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> _Array: ...
def avg_pool3d_backward(
    dy: ArrayLike,
    *,
    x_shape: Sequence[int],
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> _Array: ...
def sum_pool1d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> _Array: ...
def sum_pool1d_backward(
    dy: ArrayLike,
    *,
    x_shape: Sequence[int],
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> _Array: ...
def sum_pool2d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> _Array: ...
def sum_pool2d_backward(
    dy: ArrayLike,
    *,
    x_shape: Sequence[int],
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> _Array: ...
def sum_pool3d_forward(
    x: ArrayLike,
    *,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> _Array: ...
def sum_pool3d_backward(
    dy: ArrayLike,
    *,
    x_shape: Sequence[int],
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Padding = 0,
    dilation: _Sizes = 1,
    ceil: bool = False,
) -> _Array: ...

# --- norm ---

def local_response_norm_forward(
    x: ArrayLike, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> tuple[_Array, _Array]: ...
def local_response_norm_backward(
    dy: ArrayLike, x: ArrayLike, saved: ArrayLike, *, size: int, alpha: float = 1e-4, beta: float = 0.75
) -> _Array: ...
def batch_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    running_mean: _Array,
    running_var: _Array,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[_Array, _Array]: ...
def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    gamma: ArrayLike,
    saved: ArrayLike,
    *,
    training: bool,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...
def layer_norm_forward(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, *, eps: float = 1e-5
) -> tuple[_Array, _Array]: ...
def layer_norm_backward(
    dy: ArrayLike, x: ArrayLike, gamma: ArrayLike, saved: ArrayLike, *, needs: _Needs = None
) -> tuple[_Gradient, _Gradient, _Gradient]: ...

# --- recurrent ---

def rnn_step_forward(
    x: ArrayLike,
    h: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    bias: ArrayLike,
    *,
    activation: str = "tanh",
) -> tuple[_Array, _Saved]: ...
def rnn_step_backward(
    dh_next: ArrayLike,
    x: ArrayLike,
    h: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    h_next: ArrayLike,
    saved: _Saved,
    *,
    activation: str = "tanh",
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient, _Gradient, _Gradient]: ...
def lstm_step_forward(
    x: ArrayLike,
    h: ArrayLike,
    c: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    bias: ArrayLike,
) -> tuple[_Array, _Array, _Saved]: ...
def lstm_step_backward(
    dh_next: ArrayLike | None,
    dc_next: ArrayLike | None,
    x: ArrayLike,
    h: ArrayLike,
    c: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    h_next: ArrayLike,
    saved: _Saved,
    *,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient, _Gradient, _Gradient, _Gradient]: ...
def gru_step_forward(
    x: ArrayLike, h: ArrayLike, weight_x: ArrayLike, weight_h: ArrayLike, bias: ArrayLike
) -> tuple[_Array, _Saved]: ...
def gru_step_backward(
    dh_next: ArrayLike,
    x: ArrayLike,
    h: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    h_next: ArrayLike,
    saved: _Saved,
    *,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient, _Gradient, _Gradient]: ...
def rnn_forward(
    x: ArrayLike,
    h0: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    bias: ArrayLike,
    *,
    activation: str = "tanh",
    lengths: ArrayLike | None = None,
    reverse: bool = False,
) -> tuple[_Array, _Array, _Saved]: ...
def rnn_backward(
    dhs: ArrayLike | None,
    dh_T: ArrayLike | None,
    x: ArrayLike,
    h0: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    hs: ArrayLike,
    saved: _Saved,
    *,
    activation: str = "tanh",
    lengths: ArrayLike | None = None,
    reverse: bool = False,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient, _Gradient, _Gradient]: ...
def lstm_forward(
    x: ArrayLike,
    h0: ArrayLike,
    c0: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    bias: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    reverse: bool = False,
) -> tuple[_Array, _Array, _Array, _Saved]: ...
def lstm_backward(
    dhs: ArrayLike | None,
    dh_T: ArrayLike | None,
    dc_T: ArrayLike | None,
    x: ArrayLike,
    h0: ArrayLike,
    c0: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    hs: ArrayLike,
    saved: _Saved,
    *,
    lengths: ArrayLike | None = None,
    reverse: bool = False,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient, _Gradient, _Gradient, _Gradient]: ...
def gru_forward(
    x: ArrayLike,
    h0: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    bias: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    reverse: bool = False,
) -> tuple[_Array, _Array, _Saved]: ...
def gru_backward(
    dhs: ArrayLike | None,
    dh_T: ArrayLike | None,
    x: ArrayLike,
    h0: ArrayLike,
    weight_x: ArrayLike,
    weight_h: ArrayLike,
    hs: ArrayLike,
    saved: _Saved,
    *,
    lengths: ArrayLike | None = None,
    reverse: bool = False,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient, _Gradient, _Gradient]: ...

# --- attention ---

def attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    key_lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: bool = False,
    scale: float | None = None,
    weights: bool = False,
) -> tuple[_Array, ...]: ...
def attention_backward(
    dy: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    y: ArrayLike,
    lse: ArrayLike,
    *,
    key_lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: bool = False,
    scale: float | None = None,
    needs: _Needs = None,
) -> tuple[_Gradient, _Gradient, _Gradient]: ...

# --- optimizer ---

def sgd_update_(
    params: _Array,
    grads: ArrayLike,
    momentum_buffer: _Array | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None: ...
def rmsprop_update_(
    params: _Array,
    grads: ArrayLike,
    square_average: _Array,
    *,
    lr: float,
    decay: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None: ...
def adam_update_(
    params: _Array,
    grads: ArrayLike,
    mean: _Array,
    variance: _Array,
    *,
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    grad_scale: float = 1.0,
) -> None: ...
def global_norm(grads: ArrayLike) -> float: ...
def scale_(x: _Array, factor: float) -> None: ...
