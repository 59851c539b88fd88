"""The functions between a feed-forward block's matrices: act(gate) * up for gated blocks, act(gate) alone for plain ones. Element by element, 16 lanes.

    SILU       g / (1 + exp(0 - g))                                               SwiGLU, Shazeer 2020
    GELU_TANH  g / (1 + exp(0 - u)),  u = g * fma(g * g, c1, c0)                  0.5 g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))), Hendrycks and Gimpel 2016
    GELU_ERF   max(g, 0) - |g| * (0.5 * erfc(|g| * sqrt(0.5)))                    g * Phi(g)
    RELU2      max(g, 0) * max(g, 0)                                              So et al. 2021
    SIGMOID    1 / (1 + exp(0 - g))                                               output gates of attention
    OAI        h / (1 + exp(0 - 1.702 h)) * (v + 1),  h = min(g, 7), v = up clamped to [-7, 7]       gpt-oss; gated only

each then * up, where there is one. NaN stays NaN, so that the quantisation behind it can tell.
"""
from __future__ import annotations

from .deferred import jit
from .elementwise import silu_mul
from .simd import fma, load_f32x16, splat_f32, store_f32x16, vmax, vmin
from .vecmath import vabs, verfc, vexp

SILU, GELU_TANH, GELU_ERF, RELU2, SIGMOID, OAI = range(6)
KINDS = {"silu": SILU, "gelu_tanh": GELU_TANH, "gelu_erf": GELU_ERF, "relu2": RELU2, "sigmoid": SIGMOID, "oai": OAI}
"""Names as pages write them."""


@jit
def silu(g):
    return g / (splat_f32(1.0) + vexp(splat_f32(0.0) - g))


@jit
def gelu_tanh(g):
    u = g * fma(g * g, splat_f32(0.07135481282553), splat_f32(1.5957691216057308))
    return g / (splat_f32(1.0) + vexp(splat_f32(0.0) - u))


@jit
def gelu_erf(g):
    size = vabs(g)
    return vmax(g, splat_f32(0.0)) - size * (splat_f32(0.5) * verfc(size * splat_f32(0.7071067811865476)))


@jit
def relu2(g):
    positive = vmax(g, splat_f32(0.0)) + (g - g)  # g - g: NaN of NaN and infinity, which max would lose
    return positive * positive


@jit
def _sigmoid(g):
    return splat_f32(1.0) / (splat_f32(1.0) + vexp(splat_f32(0.0) - g)) + (g - g)


def _rows(function):
    """`function` of whole rows: gated (up != 0) or plain."""
    @jit
    def rows(gate, up, columns):
        if up != 0:
            for i in range(0, 4 * columns, 64):
                store_f32x16(gate + i, function(load_f32x16(gate + i)) * load_f32x16(up + i))
        else:
            for i in range(0, 4 * columns, 64):
                store_f32x16(gate + i, function(load_f32x16(gate + i)))
    return rows


_silu_rows, _gelu_tanh_rows, _gelu_erf_rows, _relu2_rows, _sigmoid_rows = (_rows(f) for f in (silu, gelu_tanh, gelu_erf, relu2, _sigmoid))


@jit
def _oai_rows(gate, up, columns):
    limit = splat_f32(7.0)
    for i in range(0, 4 * columns, 64):
        g, u = load_f32x16(gate + i), load_f32x16(up + i)
        h, v = vmin(g, limit) + (g - g), vmax(vmin(u, limit), splat_f32(-7.0)) + (u - u)
        store_f32x16(gate + i, h / (splat_f32(1.0) + vexp(splat_f32(0.0) - h * splat_f32(1.702))) * (v + splat_f32(1.0)))


@jit
def activate(kind, gate, up, columns):
    """gate = act(gate) [* up] in place: float32 rows of `columns`, a multiple of 16; up: address, or 0 for a plain block."""
    if kind == SILU:
        if up != 0:
            silu_mul(gate, up, columns)
        else:
            _silu_rows(gate, up, columns)
    elif kind == GELU_TANH:
        _gelu_tanh_rows(gate, up, columns)
    elif kind == GELU_ERF:
        _gelu_erf_rows(gate, up, columns)
    elif kind == RELU2:
        _relu2_rows(gate, up, columns)
    elif kind == SIGMOID:
        _sigmoid_rows(gate, up, columns)
    else:
        _oai_rows(gate, up, columns)


def _gated_or_plain():
    @jit
    def silu(gate, up, columns):
        if up != 0:
            silu_mul(gate, up, columns)
        else:
            _silu_rows(gate, up, columns)
    return silu


ROWS = {"silu": _gated_or_plain(), "gelu_tanh": _gelu_tanh_rows, "gelu_erf": _gelu_erf_rows, "relu2": _relu2_rows, "sigmoid": _sigmoid_rows, "oai": _oai_rows}
"""`activate` of one kind: name -> (gate, up, columns)."""
