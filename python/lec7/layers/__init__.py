"""Layers: ops with parameters, composed into networks; see ``Layer`` for what they share."""

from lec7.layers.activation import Relu, Sigmoid, Tanh
from lec7.layers.attention import Attention, MultiHeadAttention
from lec7.layers.base import Layer, Parameters
from lec7.layers.containers import Concat, Flatten, Recurrent, Residual, Sequential
from lec7.layers.conv import Conv1d, Conv2d, Conv3d
from lec7.layers.conv_transpose import ConvTranspose1d, ConvTranspose2d
from lec7.layers.dropout import Dropout, SpatialDropout
from lec7.layers.embedding import Embedding
from lec7.layers.linear import Linear
from lec7.layers.locally_connected import LocallyConnected2d
from lec7.layers.norm import BatchNorm, LayerNorm, LocalResponseNorm, fold_batch_norm
from lec7.layers.pool import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    SumPool1d,
    SumPool2d,
    SumPool3d,
)
from lec7.layers.recurrent import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Attention",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm",
    "Concat",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Layer",
    "LayerNorm",
    "Linear",
    "LocalResponseNorm",
    "LocallyConnected2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MultiHeadAttention",
    "Parameters",
    "Recurrent",
    "Relu",
    "Residual",
    "Sequential",
    "Sigmoid",
    "SpatialDropout",
    "SumPool1d",
    "SumPool2d",
    "SumPool3d",
    "Tanh",
    "fold_batch_norm",
]
