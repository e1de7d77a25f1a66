from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from lec7 import ops
from lec7.arrays import Array, zeros
from lec7.initializers import glorot_uniform, orthogonal
from lec7.layers.base import Layer

#: (h,) for RNN and GRU, (h, c) for LSTM; each (N, H)
State = tuple[Array, ...]


class RecurrentCache(NamedTuple):
    """What ``forward`` leaves for ``backward``, and the state after the last step."""

    x: Array
    initial: State
    hs: Array
    state: State
    saved: Any
    lengths: Array | None


class RecurrentLayer(Layer):
    """A whole sequence through one recurrent layer, in one op; RNN, LSTM and GRU are its cells.

    x (T, N, input_size) -> hs (T, N, H). It starts from ``state`` or from zeros and leaves the state
    after the last step in ``cache.state``, from where the next chunk can go on. ``lengths`` (N,): row n
    lives for lengths[n] steps, hs is 0 past them. ``reverse`` walks from the last step to the first.

    weight_x (input_size, G*H) starts as Glorot's for each gate, weight_h (H, G*H) as rotations.
    """

    cell: ClassVar[str]
    gates: ClassVar[int]
    state_size: ClassVar[int] = 1

    def __init__(
        self, input_size: int, hidden_size: int, *, rng: np.random.Generator, reverse: bool = False
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.reverse = reverse
        per_gate = [glorot_uniform((input_size, hidden_size), rng) for _ in range(self.gates)]
        self.add_parameter("weight_x", np.concatenate(per_gate, axis=1))
        self.add_parameter("weight_h", orthogonal((hidden_size, self.gates * hidden_size), rng))
        self.add_parameter("bias", np.zeros(self.gates * hidden_size, np.float32))

    def _options(self) -> dict[str, Any]:
        return {}

    def _weights(self) -> tuple[Array, Array, Array]:
        return self._params["weight_x"], self._params["weight_h"], self._params["bias"]

    def zero_state(self, batch: int) -> State:
        bias = self._params["bias"]
        return tuple(zeros((batch, self.hidden_size), bias) for _ in range(self.state_size))

    def step(self, x: Array, state: State, *, weight_x: Array | None = None) -> State:
        """One step without a backward pass: x (N, input_size), state -> the next state, h first.

        ``weight_x``: in place of the layer's; with a product that is known already, (1, G*H), x is [[1]].
        """
        own, *others = self._weights()
        forward = getattr(ops, f"{self.cell}_step_forward")
        return forward(x, *state, own if weight_x is None else weight_x, *others, **self._options())[:-1]

    def forward(
        self, x: Array, *, training: bool = False, state: State | None = None, lengths: Array | None = None
    ) -> tuple[Array, RecurrentCache]:
        if x.ndim != 3:
            raise ValueError(f"{type(self).__name__}: x is (T, N, input_size), its shape is {x.shape}")
        initial = self.zero_state(x.shape[1]) if state is None else state
        forward = getattr(ops, f"{self.cell}_forward")
        hs, *last, saved = forward(
            x, *initial, *self._weights(), lengths=lengths, reverse=self.reverse, **self._options()
        )
        return hs, RecurrentCache(x, initial, hs, tuple(last), saved, lengths)

    def backward(self, dy: Array, cache: RecurrentCache, *, needs_dx: bool = True) -> Any:
        return self.backward_state(dy, None, cache, needs_dx=needs_dx, needs_dstate=False)[0]

    def backward_state(
        self,
        dy: Array | None,
        dstate: tuple[Array | None, ...] | None,
        cache: RecurrentCache,
        *,
        needs_dx: bool = True,
        needs_dstate: bool = True,
    ) -> tuple[Array | None, State | None]:
        """From dy (T, N, H) and the last state's gradient (either or None) to dx and the first state's."""
        states = ("dh0", "dc0")[: self.state_size]
        needs = self.wanted(*(["dx"] if needs_dx else []), *(states if needs_dstate else ()))
        backward = getattr(ops, f"{self.cell}_backward")
        dx, *rest = backward(
            dy,
            *(dstate or (None,) * self.state_size),
            cache.x,
            *cache.initial,
            *self._weights()[:2],
            cache.hs,
            cache.saved,
            lengths=cache.lengths,
            reverse=self.reverse,
            needs=needs,
            **self._options(),
        )
        *dinitial, dweight_x, dweight_h, dbias = rest
        self.accumulate(weight_x=dweight_x, weight_h=dweight_h, bias=dbias)
        return dx, tuple(dinitial) if needs_dstate else None

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        steps = x_shape[0] * x_shape[1]
        return 2 * steps * self.gates * self.hidden_size * (self.input_size + self.hidden_size)


class RNN(RecurrentLayer):
    """h' = act(x Wx + h Wh + b), act tanh or relu.

    Source:  Elman 1990.
    """

    cell = "rnn"
    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        rng: np.random.Generator,
        activation: str = "tanh",
        reverse: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, rng=rng, reverse=reverse)
        self.activation = activation

    def _options(self) -> dict[str, Any]:
        return {"activation": self.activation}


class LSTM(RecurrentLayer):
    """i, f, o = sigmoid, g = tanh of x Wx + h Wh + b; c' = f c + i g; h' = o tanh(c').

    The forget gate's bias starts at 1, so that a fresh cell remembers.
    Source:  Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000 (forget gate);
    Jozefowicz, Zaremba, Sutskever 2015 (its bias).
    """

    cell = "lstm"
    gates = 4
    state_size = 2

    def __init__(
        self, input_size: int, hidden_size: int, *, rng: np.random.Generator, reverse: bool = False
    ) -> None:
        super().__init__(input_size, hidden_size, rng=rng, reverse=reverse)
        self._params["bias"][hidden_size : 2 * hidden_size] = 1


class GRU(RecurrentLayer):
    """r, z = sigmoid(x Wx + h Wh + b); n = tanh(x Wxn + b_n + r (h Whn)); h' = (1 - z) n + z h.

    Source:  Cho et al. 2014; the reset gate follows the product, as in cuDNN.
    """

    cell = "gru"
    gates = 3


CELLS: dict[str, type[RecurrentLayer]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
