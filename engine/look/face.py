"""The methods of `Model` that look inside. What they do lies in the other files of this wing, which are imported when a method is called."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ...kernels.float_env import in_default_floats
from ..answers.core import Core

if TYPE_CHECKING:
    import os

    from .hooks import Hook


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
