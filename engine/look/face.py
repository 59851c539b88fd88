"""The methods of `Model` that look inside. What they do lies in the other files of this wing, which are imported when a method is called."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...kernels.float_env import in_default_floats
from ..answers.core import Core

if TYPE_CHECKING:
    import os

    import numpy as np

    from .attention import Attention
    from .change import Patching
    from .hooks import Hook
    from .lens import Affine, Lens
    from .steer import Steered, SteeringVector
    from .trace import Trace


class LookInside(Core):
    """A part of Model. See docs/look.md."""

    def sites(self) -> dict[str, tuple[int, ...]]:
        """What can be looked at: name -> shape of one position's numbers, in order of the pass; of attention's maps: (heads,)."""
        from .names import catalogue
        self._check_open()
        return {name: place.shape for name, place in catalogue(self.config).items()}

    @in_default_floats
    def activations(self, texts: Any, names: str | Iterable[str], positions: Any = None, to: str | os.PathLike[str] | None = None) -> Any:
        """Numbers of the pass by TransformerLens's names, with globs ("blocks.*.hook_resid_post"): a mapping of names to float32 arrays, [positions, dim],
        [positions, heads, head_dim], or, of hook_pattern and hook_attn_scores, [heads, positions, the text's tokens].

        texts: a str (with BOS as the file says), token ids, or a list of such, which gives a list of arrays for each name, one a text, nothing padded.
        positions: of each text: None (all), a number (negative: from the end), "last", a slice, several numbers. to: a folder; the numbers go there as .npy
        files with a JSON index, so that memory stays bounded; one that was begun with the same model, names, positions and texts is gone on with.
        Raises OptionError (an unknown name: with those that are near), ContextFullError, OutOfMemoryError, NumericError, FileError (the folder).
        """
        from .activations import activations
        self._check_open()
        return activations(self, texts, names, positions, to)

    def hooked(self, hooks: Mapping[str, Hook]) -> AbstractContextManager[None]:
        """Within the block, call functions with the arrays at named places (globs, too) in every step that this thread takes of the model, generation as well:
        hook(array, spot) -> None, or an array of the same shape that goes on in its place. The array is a copy, read-only; spot.name, .layer, .positions, .ids.

        A change reaches later layers and later positions, through the text's own KV cache; such texts neither use nor fill the prefix cache, and nobody
        guesses ahead for them. Blocks nest: outer hooks are called first. OptionError: unknown names; also from the step, for what a hook returns."""
        from .hooks import hooked
        self._check_open()
        return hooked(self, hooks)

    @in_default_floats
    def lens(self, text: str | Iterable[int], layers: Iterable[int] | None = None, top: int = 5, affine: Affine | None = None) -> Lens:
        """The logit lens: what the model would say after each position of a text if the stream ended after each layer. See `Lens`; a notebook draws it.

        layers: which (-1: the embedding); default: all. affine: {layer: (A, b)}, a trained lens: rows @ A.T + b are read instead. Errors as of
        `activations`."""
        from .lens import lens
        self._check_open()
        return lens(self, text, layers, top, affine)

    @in_default_floats
    def trace(self, text: str | Iterable[int], top: int = 10, attribution: bool = True, heads: bool = True, affine: Affine | None = None) -> Trace:
        """How the model reads a text: each token's surprise, rank and what was expected, the layer after which that was settled, and which blocks and heads
        wrote the logit of each next token. See `Trace`; a notebook draws it. attribution, heads: False spares that work. Errors as of `activations`."""
        from .trace import trace
        self._check_open()
        return trace(self, text, top, attribution, heads, affine)

    @in_default_floats
    def attention(self, text: str | Iterable[int], layers: Any = None, heads: Any = None, positions: Any = None, top: int = 5, maps: bool = True,
                  mean: bool = True) -> Attention:
        """Attention's weights of a text, for chosen layers, heads and queries (`positions`), with what can be said of them: entropy, the `top` keys, means by
        distance and (mean) over heads. See `Attention`; a notebook draws it. maps=False: the maps themselves are never held. Errors as of `activations`."""
        from .attention import attention
        self._check_open()
        return attention(self, text, layers, heads, positions, top, maps, mean)

    def ablate(self, names: str | Iterable[str], heads: Any = None, positions: Any = None, value: Any = 0.0) -> AbstractContextManager[None]:
        """Within the block, what is at these places is `value`: a number, an array of one position's shape, or {name: such} (`mean_activations`). heads: of
        hook_z, hook_q, hook_k or hook_v only these. positions: numbers from 0 on, or a slice; default: all. A hooked block like others. OptionError."""
        from .change import ablate
        self._check_open()
        return ablate(self, names, heads, positions, value)

    @in_default_floats
    def mean_activations(self, texts: Iterable[Any], names: str | Iterable[str], positions: Any = None) -> dict[str, np.ndarray]:
        """Means over texts and positions, by name: values for `ablate`. Errors as of `activations`."""
        from .change import mean_activations
        from .texts import several
        self._check_open()
        return mean_activations(self, several(texts)[0], names, positions)

    @in_default_floats
    def patch(self, clean: str | Iterable[int], corrupt: str | Iterable[int], names: str | Iterable[str], metric: Any, positions: Any = None,
              heads: Any = None) -> Patching:
        """Activation patching: the corrupt text again and again, each time with the clean text's numbers at one place and position (and head), and what becomes
        of a metric. See `Patching`; a notebook draws it. Only layers and positions that a change can reach are computed.

        clean, corrupt: of equally many tokens. metric: a function of the last position's logits, float32 [n_vocab], or two tokens (text or id): the first
        one's logit less the second's. positions: default: all from the first that differs. heads: as of `ablate`. Errors as of `activations`."""
        from .change import patch
        self._check_open()
        return patch(self, clean, corrupt, names, metric, positions, heads)

    @in_default_floats
    def steering_vector(self, positive: Any, negative: Any, layers: Any = None, positions: Any = "last") -> SteeringVector:
        """A direction for each layer: the mean of its output (hook_resid_post) over positive texts less that over negative ones. layers: default: all but the
        first, for which llama.cpp's files have no place. positions: of each text, whose mean counts once. Errors as of `activations`."""
        from .steer import steering_vector
        self._check_open()
        return steering_vector(self, positive, negative, layers, positions)

    def steer(self, vector: SteeringVector | Any, strength: float = 1.0, layers: Any = None, positions: Any = None) -> AbstractContextManager[None]:
        """Within the block, strength * vector is added to the output of its layers (or of `layers`, for an array [dim]) at all positions, or those given
        (numbers from 0 on, or a slice). Strength 0 changes no bit. A hooked block like others. OptionError."""
        from .steer import steer
        self._check_open()
        return steer(self, vector, strength, layers, positions)

    def control(self, *vectors: Any, layers: Any = None) -> None:
        """From now on, everything that is computed has these added to its layers' outputs, at all positions: control-vector files, `SteeringVector`s, or pairs
        (one of these, strength), of strength 1 unless said; what was there before goes, and without any there is none. layers: only these. Unlike a block of
        `steer`, it holds for all threads, for the server and with the prefix cache. OptionError, FileError, FormatError."""
        from .steer import control
        self._check_open()
        control(self, [entry if isinstance(entry, tuple) else (entry, 1.0) for entry in vectors], layers)

    def steered(self, prompt: str, vector: SteeringVector | Any, strengths: Iterable[float] = (-1.0, 0.0, 1.0), layers: Any = None, **options: Any) -> Steered:
        """Answers to one prompt at several strengths of steering; a notebook shows them below each other. options: of `generate` (40 tokens, temperature 0)."""
        from .steer import steered
        self._check_open()
        return steered(self, prompt, vector, strengths, layers, options)
