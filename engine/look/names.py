"""What can be looked at, by TransformerLens's names, with globs; what isn't there is refused with the names that are near.

    "blocks.*.attn.hook_z" ──► catalogue of the model ──► [Place(name, layer, site, shape, map), …] in order of the pass

Beside the sites of the model's program (ModelConfig.sites) there are two maps a layer of attention: `hook_attn_scores` and `hook_pattern`, which are computed
from the queries and the KV pages when the layer's `hook_z` is there. `hook_embed` is the first layer's `hook_resid_pre` by another name.
"""
from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..architectures.blocks import Attention
from ..architectures.spec import Site
from ..errors import OptionError, quoted

if TYPE_CHECKING:
    from ..architectures.config import ModelConfig

MAPS = {"hook_attn_scores": "scores", "hook_pattern": "pattern"}
"""Names of attention's maps -> which."""


@dataclass(frozen=True)
class Place:
    """Something with a name that can be looked at. shape: of one position's numbers, () never: (dim,), (heads, head_dim). site: when it is there; map: "" for
    what is in the site's buffer (which can be changed), else "scores" or "pattern" of `attention`, float32 [heads, queries, keys]."""

    name: str
    layer: int | None
    site: Site
    shape: tuple[int, ...]
    map: str = ""
    attention: Attention | None = None


@functools.lru_cache(maxsize=16)
def catalogue(config: ModelConfig) -> dict[str, Place]:
    """All of a model's places by name, in order of the pass."""
    attentions = {a.layer: a for a in config.attentions()}
    found: dict[str, Place] = {}
    for name, (layer, site) in config.sites().items():
        a = attentions.get(layer) if layer is not None else None
        part = name.rsplit(".", 1)[-1]
        if a is not None and name == f"blocks.{layer}.attn.hook_z":
            for hook, kind in MAPS.items():
                found[f"blocks.{layer}.attn.{hook}"] = Place(f"blocks.{layer}.attn.{hook}", layer, site, (a.heads,), kind, a)
        shape: tuple[int, ...] = (site.columns,)
        if a is not None and ".attn." in name:
            shape = {"hook_q": (a.heads, a.head_dim), "hook_rot_q": (a.heads, a.head_dim), "hook_k": (a.kv_heads, a.head_dim),
                     "hook_rot_k": (a.kv_heads, a.head_dim), "hook_v": (a.kv_heads, a.value_dim),
                     "hook_z": (a.heads, a.output.columns // a.heads)}.get(part, shape)
        found[name] = Place(name, layer, site, shape, "", a)
    if "blocks.0.hook_resid_pre" in found:
        first = found["blocks.0.hook_resid_pre"]
        found["hook_embed"] = Place("hook_embed", first.layer, first.site, first.shape)
    return found


def places(config: ModelConfig, names: str | Iterable[str], path: object = "the model") -> list[Place]:
    """What names and globs ("*", "?", "[05]") mean, each once, in order of the pass. OptionError: nothing is called so."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        names = [names]  # type: ignore[list-item]
    every, asked = catalogue(config), set()
    for name in names:
        if not isinstance(name, str):
            raise OptionError(f"names of sites must be text, found {quoted(name)}")
        if name in every:
            asked.add(name)
            continue
        matched = [known for known in every if known != "hook_embed" and fnmatch.fnmatchcase(known, name)]
        if not matched:
            raise OptionError(f"{path}: has no site {quoted(name)}{_hint(config, every, name)}")
        asked.update(matched)
    if not asked:
        raise OptionError("no site was named: give names such as 'blocks.*.hook_resid_post'")
    return [place for name, place in every.items() if name in asked]


def _hint(config: ModelConfig, every: dict[str, Place], name: str) -> str:
    """What may have been meant."""
    parts = name.split(".")
    if len(parts) > 2 and parts[0] == "blocks":
        if parts[1].isdigit() and int(parts[1]) >= config.n_layers:
            return f": it has {config.n_layers} layers, blocks.0 to blocks.{config.n_layers - 1}"
        part = ".".join(parts[2:])
        here = {".".join(known.split(".")[2:]) for known in every if known.startswith(f"blocks.{parts[1]}.")} if parts[1].isdigit() else \
            {".".join(known.split(".")[2:]) for known in every if known.startswith("blocks.")}
        if parts[1].isdigit() and any(known.endswith("." + part) for known in every):
            return f": layer {parts[1]} doesn't compute that; it has {', '.join(sorted(here))}"
        if near := difflib.get_close_matches(part, here, 3, 0.5):
            return ": did you mean " + " or ".join(f"'{parts[0]}.{parts[1]}.{n}'" for n in near) + "?"
    if near := difflib.get_close_matches(name, every, 3, 0.5):
        return f": did you mean {' or '.join(repr(n) for n in near)}?"
    return f": names are such as {next(iter(every))!r} (model.sites())"
