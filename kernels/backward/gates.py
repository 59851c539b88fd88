"""Backwards through what stands between a feed-forward block's matrices, element by element: a = act(g) × u, or act(g) alone.

    du = da × act(g),  dg = (da × u) × act'(g)

    SILU       s = 1 ÷ (1 + exp(0 − g)):  s × fma(g, 1 − s, 1)
    GELU_TANH  s = 1 ÷ (1 + exp(0 − u)), u as forward:  fma(g × (s × (1 − s)), fma(g × g, 3 c₁, c₀), s)
    GELU_ERF   fma(g, exp((g × g) × −½) × (1 ÷ √(2 π)), ½ erfc(−g ÷ √2)), the latter as forward: ½ erfc(|g| ÷ √2), or 1 less that for g > 0
    RELU2      2 × max(g, 0)
"""
from __future__ import annotations

from functools import cache

from ..compile_cache import Compiled, compiled
from ..deferred import intrinsic, jit
from ..gates import gelu_erf, gelu_tanh, relu2, silu
from ..simd import F32x16, constant, fma, load_f32x16, load_i64, splat_f32, store_f32x16, vmax
from ..team_state import next_tile
from ..vecmath import vabs, verfc, vexp

GATE, UP, D, LD, N_TOKENS, OUT = range(0, 48, 8)
"""Addresses of float32 [N_TOKENS, LD]. GATE, UP (0: a plain block): what the activation read; they become their gradients. D: gradients of its result. OUT: its
result, of `gate_again`."""
WORDS = 6
SOME = 8
"""Tokens that go to a thread at once."""


@intrinsic
def _if_positive(typingctx, g, a, b):
    """Lane-wise g > 0 ? a : b."""
    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", args[0], constant(F32x16.llvm, 0.0)), args[1], args[2])
    return F32x16(g, a, b), codegen


@jit
def _silu(g):
    one = splat_f32(1.0)
    s = one / (one + vexp(splat_f32(0.0) - g))
    return s * fma(g, one - s, one)


@jit
def _gelu_tanh(g):
    one, c0, c1 = splat_f32(1.0), splat_f32(1.5957691216057308), splat_f32(0.07135481282553)
    s = one / (one + vexp(splat_f32(0.0) - g * fma(g * g, c1, c0)))
    return fma(g * (s * (one - s)), fma(g * g, splat_f32(0.21406443847659), c0), s)


@jit
def _gelu_erf(g):
    tail = splat_f32(0.5) * verfc(vabs(g) * splat_f32(0.7071067811865476))
    phi = _if_positive(g, splat_f32(1.0) - tail, tail)
    return fma(g, vexp(g * g * splat_f32(-0.5)) * splat_f32(0.3989422804014327), phi)


@jit
def _relu2(g):
    return splat_f32(2.0) * vmax(g, splat_f32(0.0))


KINDS = {"silu": (silu, _silu), "gelu_tanh": (gelu_tanh, _gelu_tanh), "gelu_erf": (gelu_erf, _gelu_erf), "relu2": (relu2, _relu2)}
"""Activations that can be gone through backwards: the function, and its derivative."""


@cache
def gate_back(activation: str) -> Compiled:
    act, derivative = KINDS[activation]

    def gate_back(tid, n_threads, team, words):
        gate, up, d, ld, tokens = (load_i64(words + GATE), load_i64(words + UP), load_i64(words + D), load_i64(words + LD), load_i64(words + N_TOKENS))
        for i in range(tid * tokens // n_threads * 4 * ld, (tid + 1) * tokens // n_threads * 4 * ld, 64):
            g, a = load_f32x16(gate + i), load_f32x16(d + i)
            if up != 0:
                u = load_f32x16(up + i)
                store_f32x16(up + i, a * act(g))
                a = a * u
            store_f32x16(gate + i, a * derivative(g))
        return 0
    gate_back.__name__ = gate_back.__qualname__ = f"gate_back_{activation}"
    return compiled("int64(int64, int64, int64, int64)")(gate_back)


@cache
def gate_again(activation: str) -> Compiled:
    act = KINDS[activation][0]

    def gate_again(tid, n_threads, team, words):
        gate, up, out, ld, tokens = (load_i64(words + GATE), load_i64(words + UP), load_i64(words + OUT), load_i64(words + LD), load_i64(words + N_TOKENS))
        first = next_tile(team, 0, SOME)
        while first < tokens:
            for i in range(4 * ld * first, 4 * ld * min(tokens, first + SOME), 64):
                a = act(load_f32x16(gate + i))
                if up != 0:
                    a = a * load_f32x16(up + i)
                store_f32x16(out + i, a)
            first = next_tile(team, 0, SOME)
        return 0
    gate_again.__name__ = gate_again.__qualname__ = f"gate_again_{activation}"
    return compiled("int64(int64, int64, int64, int64)")(gate_again)
