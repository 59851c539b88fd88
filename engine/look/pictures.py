"""Pictures for notebooks and files: HTML that needs nothing from outside, no script, at most 300 kB, for light and dark, and for eyes that see no red or green.

    Trace ──► strip of tokens by surprise, details on hover or focus      Lens ──► layers x positions       Attention ──► grid of heads, one enlarged
    Patching ──► heat map                                                 Steered ──► answers side by side

How much is shown by how blue something is (orange: the other way); every number stands in the text as well, in a cell's title or a table, so that nothing is
told by colour alone. What would grow too large shows its beginning, and says so.
"""
from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from .style import CSS

if TYPE_CHECKING:
    from .attention import Attention
    from .change import Patching
    from .lens import Lens
    from .steer import Steered
    from .trace import Trace

MOST = 300_000
"""Bytes of a picture."""
_BLUE, _ORANGE = (26, 111, 196), (214, 110, 0)


def shown(text: str) -> str:
    """A token for people: blanks and line ends visible, markup escaped."""
    return html.escape(text.replace("\n", "\u21b5").replace("\t", "\u21e5").replace(" ", "\u00b7")) or "\u2205"


def _plain(text: str) -> str:
    """For an attribute."""
    return html.escape(text.replace("\n", "\u21b5"), quote=True)


def shade(value: float, least: float = 0.0, most: float = 1.0) -> str:
    """A cell's style: the larger, the bluer; below zero, orange."""
    x = 0.0 if not np.isfinite(value) else max(-1.0, min(1.0, (value - least) / (most - least)))
    r, g, b = _BLUE if x >= 0 else _ORANGE
    return f"background:rgba({r},{g},{b},{0.68 * abs(x):.2f})"


def page(body: str, label: str) -> str:
    """A picture with its style and what it is, for screen readers."""
    return f'<div class="llamina-look" role="figure" aria-label="{_plain(label)}"><style>{CSS}</style>{body}</div>'


def document(body: str, title: str) -> str:
    """A whole HTML file around pictures."""
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>:root{{color-scheme:light dark}}body{{margin:2rem auto;max-width:76rem;padding:0 1rem;"
            f"font-family:system-ui,sans-serif}}</style></head><body>{body}</body></html>\n")


def _scale(least: str, most: str) -> str:
    cells = "".join(f'<span style="{shade(i / 8)}">&nbsp;</span>' for i in range(9))
    return f'<p class="scale">{html.escape(least)} {cells} {html.escape(most)}</p>'


def _layer(layer: int) -> str:
    return "embedding" if layer < 0 else f"layer {layer}"


# -- one text -----------------------------------------------------------------------------------------------------------------------------------

def trace_html(trace: Trace) -> str:
    n = len(trace.ids)
    k = max(1, min(trace.lens.top_ids.shape[2], int((MOST * 0.6 / n - 350) / 75)))
    surprise, entropy, rank, settled = trace.surprise, trace.entropy, trace.rank, trace.settled
    parts: list[str] = []
    size, cut = 0, n
    for i, token in enumerate(trace.tokens):
        if i == 0:
            details = "<b>the beginning</b>"
        else:
            rows = "".join(f"<tr><td>{shown(t)}</td><td>{p:.1%}</td></tr>" for t, p in trace.expected(i)[:k])
            details = (f"<b>{shown(token)}</b> surprise {surprise[i]:.2f} nats, rank {rank[i]}<br>entropy {entropy[i]:.2f}, settled after {_layer(settled[i])}"
                       f"<table>{rows}</table>{_writers(trace, i)}")
        cell = f'<span class="t" tabindex="0" style="{shade(surprise[i], 0, 8) if i else ""}">{shown(token)}<span class="p">{details}</span></span>'
        if size + len(cell.encode()) > MOST * 0.9:
            cut = i
            break
        parts.append(cell)
        size += len(cell.encode())
    mean = f"{np.nanmean(surprise):.3f} nats a token" if n > 1 else "one token"
    note = "" if cut == n else f"<p>The first {cut} of {n} tokens.</p>"
    after = ", ".join(f"{shown(t)} {p:.1%}" for t, p in trace.expected(n)[:5])
    worst = ", ".join(f"{trace.tokens[i]!r} ({surprise[i]:.1f})" for i in np.argsort(-np.nan_to_num(surprise, nan=-1))[:5] if i)
    return page(f'<div class="strip">{"".join(parts)}</div>{note}{_scale("expected", "surprise of 8 nats or more")}<p>{mean}. Next: {after}</p>',
                f"{n} tokens shaded by surprise, {mean}; most surprising: {worst or 'none'}. Hover over or tab to a token for what was expected.")


def _writers(trace: Trace, i: int) -> str:
    """The parts that wrote most of a token's logit."""
    a = trace.attribution
    if a is None:
        return ""
    values = a.parts[i - 1]
    best = np.argsort(-np.abs(values))[:3]
    return f"logit {a.logits[i - 1]:.2f}: " + ", ".join(f"{a.labels[j]} {values[j]:+.1f}" for j in best)


def lens_html(lens: Lens) -> str:
    n, n_layers = len(lens.ids), len(lens.layers)
    k = min(3, lens.top_ids.shape[2])
    columns = min(n, max(1, int(MOST * 0.85 / (n_layers * (95 + 45 * k)))))
    first = n - columns if columns < n else 0
    head = "".join(f"<th>{shown(t)}</th>" for t in lens.tokens[first:])
    rows = []
    for layer in range(n_layers - 1, -1, -1):
        cells = []
        for p in range(first, n):
            tops = [(lens.vocabulary[int(id)], float(q)) for id, q in zip(lens.top_ids[layer, p, :k], lens.top_probs[layer, p, :k])]
            title = ", ".join(f"{t!r} {q:.1%}" for t, q in tops) + f"; next is rank {lens.rank[layer, p]}"
            cells.append(f'<td style="{shade(tops[0][1])}" title="{_plain(title)}">{shown(tops[0][0])}</td>')
        rows.append(f"<tr><th>{_layer(lens.layers[layer])}</th>{''.join(cells)}</tr>")
    note = "" if first == 0 else f"<p>The last {columns} of {n} positions.</p>"
    return page(f'<div class="wide"><table class="grid"><thead><tr><th>after</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{note}'
                f'{_scale("unsure", "sure of it")}', f"Logit lens: the first choice after each of {n_layers} places for {columns} positions")


# -- attention ----------------------------------------------------------------------------------------------------------------------------------

def png(values: np.ndarray) -> str:
    """float [h, w], 0 to 1, as a data URI: blue of that opacity, which is right on light and dark."""
    h, w = values.shape
    codes = np.zeros((h, w + 1), np.uint8)
    codes[:, 1:] = np.clip(np.sqrt(np.maximum(values, 0)) * 255, 0, 255).astype(np.uint8)  # the square root: small weights are to be seen

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    raw = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 3, 0, 0, 0)) + chunk(b"PLTE", bytes(_BLUE) * 256)
           + chunk(b"tRNS", bytes(range(256))) + chunk(b"IDAT", zlib.compress(codes.tobytes(), 9)) + chunk(b"IEND", b""))
    return "data:image/png;base64," + base64.b64encode(raw).decode()


def _small(map: np.ndarray, side: int) -> np.ndarray:
    """At most side x side: the largest weight of each square."""
    for axis in 0, 1:
        if (n := map.shape[axis]) > side:
            map = np.maximum.reduceat(map, np.arange(side) * n // side, axis=axis)
    return map


def attention_html(a: Attention, layer: int | None = None, head: int | None = None) -> str:
    if not a.maps:
        return page(_attention_table(a), "Attention's entropy by layer and head")
    if layer is None or head is None:
        spread = {(i, h): float(a.entropy[i][j].mean()) for i in a.maps for j, h in enumerate(a.heads[i]) if layer in (None, i) and head in (None, h)}
        layer, head = min(spread, key=lambda key: spread[key])
    body = _enlarged(a, layer, head)
    size, shown_heads, all_heads = len(body), 0, sum(len(h) for h in a.heads.values())
    side = 96 if all_heads <= 40 else 48
    for i in a.maps:
        figures = []
        for j, h in enumerate(a.heads[i]):
            image = png(_small(a.maps[i][j], side))
            title = f"layer {i} head {h}: entropy {a.entropy[i][j].mean():.2f} nats"
            figure = f'<figure><img src="{image}" alt="{title}" title="{title}"><figcaption>{i}.{h}</figcaption></figure>'
            if size + len(figure) > MOST * 0.95:
                break
            figures.append(figure)
            size, shown_heads = size + len(figure), shown_heads + 1
        body += f'<div class="heads">{"".join(figures)}</div>'
    if shown_heads < all_heads:
        body += f"<p>{shown_heads} of {all_heads} heads: choose layers.</p>"
    return page(body + _scale("no weight", "all weight (shown by its square root)"),
                f"Attention of {shown_heads} heads over {len(a.ids)} tokens; enlarged: layer {layer} head {head}")


def _enlarged(a: Attention, layer: int, head: int) -> str:
    map, n = a.maps[layer][a.heads[layer].index(head)], len(a.ids)
    title = f"<p><b>Layer {layer}, head {head}</b>: rows look at columns</p>"
    if n > 40 or len(map) > 40:
        return f'{title}<img class="large" src="{png(_small(map, 320))}" alt="layer {layer} head {head}, {len(map)} queries, {n} keys">'
    top = "".join(f'<th class="v"><span>{shown(t)}</span></th>' for t in a.tokens)
    rows = []
    for row, p in zip(map, a.positions):
        cells = "".join(f'<td style="{shade(float(np.sqrt(w)))}" title="{_plain(a.tokens[p])} to {_plain(a.tokens[c])}: {w:.3f}"></td>'
                        for c, w in enumerate(row[:p + 1])) + "<td></td>" * (n - 1 - p)
        rows.append(f"<tr><th>{shown(a.tokens[p])}</th>{cells}</tr>")
    return f'{title}<div class="wide"><table class="map"><thead><tr><th></th>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _attention_table(a: Attention) -> str:
    most = max(len(h) for h in a.heads.values())
    top = max(1e-9, max(float(e.mean(axis=1).max()) for e in a.entropy.values()))
    rows = "".join(f"<tr><th>layer {i}</th>" + "".join(f'<td style="{shade(v, 0, top)}">{v:.2f}</td>' for v in a.entropy[i].mean(axis=1)) + "</tr>"
                   for i in a.layers)
    head = "".join(f"<th>{j}</th>" for j in range(most))
    return f'<p>Mean entropy of attention, nats, by head</p><div class="wide"><table class="grid"><tr><th></th>{head}</tr>{rows}</table></div>'


# -- changes ------------------------------------------------------------------------------------------------------------------------------------

def patching_html(found: Patching) -> str:
    values = found.recovered if found.heads is None else found.recovered.reshape(len(found.names), -1)
    labels = [shown(found.tokens[p]) + ("" if found.tokens[p] == found.clean_tokens[p] else "\u2190" + shown(found.clean_tokens[p])) for p in found.positions]
    if found.heads is not None:
        labels = [f"{label}<br>head {h}" for label in labels for h in found.heads]
    fits = max(1, int(MOST * 0.9 / (len(labels) * 90 + 60)))
    rows = []
    for name, row in list(zip(found.names, values))[:fits]:
        cells = "".join(f'<td style="{shade(v)}" title="{_plain(name)}: {v:.1%}">{v:.2f}</td>' for v in row)
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    note = "" if fits >= len(found.names) else f"<p>The first {fits} of {len(found.names)} places.</p>"
    head = "".join(f"<th>{label}</th>" for label in labels)
    best = np.unravel_index(int(np.nanargmax(values)), values.shape)
    table = f'<table class="grid"><thead><tr><th>clean put into corrupt</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return page(f'<div class="wide">{table}</div>{note}{_scale("as corrupt", "as clean")}'
                f"<p>Metric: corrupt {found.corrupt:.3f}, clean {found.clean:.3f}. Orange: further away from clean.</p>",
                f"Patching: what of the metric each of {len(found.names)} places recovers, {len(found.positions)} positions; most at {found.names[best[0]]}")


def steered_html(found: Steered) -> str:
    rows = "".join(f'<tr><th>{s:+g}</th><td class="text">{html.escape(text)}</td></tr>' for s, text in zip(found.strengths, found.texts))
    return page(f'<p>After <i>{html.escape(found.prompt)}</i></p><table class="answers"><tr><th>strength</th><th>answer</th></tr>{rows}</table>',
                f"Answers at {len(found.strengths)} strengths of steering")


def together(pictures: Iterable[tuple[str, str]], title: str) -> str:
    """[(heading, picture)] as one file."""
    return document(f"<h1>{html.escape(title)}</h1>" + "".join(f"<h2>{html.escape(head)}</h2>{body}" for head, body in pictures), title)
