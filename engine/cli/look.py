"""`llamina look`: how a model reads a text: surprise, what it expected, layer by layer, and attention."""
from __future__ import annotations

import json
import re
import shutil
from typing import Any

import click

from .adapters import adapter_options
from .options import debug_option, open_model
from .outputs import check_files
from .progress import Progress


@click.command("look")
@click.argument("model")
@click.argument("text")
@click.option("--lens", is_flag=True, help="What the model would say after each layer, for each position.")
@click.option("--attention", metavar="LAYER[.HEAD]", help="Attention of a layer's heads, or the map of one head.")
@click.option("--top", type=int, default=3, show_default=True, metavar="K", help="So many of the tokens that were expected.")
@click.option("--html", "html_path", metavar="FILE", help="Write the pictures to an HTML file that needs nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with who wrote each token's logit.")
@click.option("--special", is_flag=True, help="Special tokens written in the text (</s>, <|eot_id|>) are those tokens, not text.")
@click.option("--threads", type=int, metavar="N", help="Threads to compute with.  [default: measured once]")
@click.option("--kv", metavar="TYPE", help="What keys and values are kept as: f16, q8_0, f32.  [default: f16; f32 for F32 files]")
@adapter_options
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(model: str, text: str, lens: bool, attention: str | None, top: int, html_path: str | None, as_json: bool, special: bool, threads: int | None,
            kv: str | None, quiet: bool) -> None:
    """Show how MODEL reads TEXT: a line a token with its surprise in nats, its rank, the entropy of what was expected there, and the layer after which the
    first choice stayed what it became.

    \b
    Examples:
      llamina look demo "Once upon a time there was a little girl"
      llamina look model.gguf "The capital of France is" --lens
      llamina look model.gguf "When Mary and John went to the store" --attention 5.1
      llamina look model.gguf "The capital of France is" --html look.html
    """
    check_files("html_path")
    layer, head = _layer_head(attention)
    with Progress(quiet) as progress:
        opened = open_model(model, threads, None, progress, kv=kv)
        ids = opened.tokenize(text, special=special)
        progress.clear()
    width = shutil.get_terminal_size((120, 24)).columns
    trace = opened.trace(ids, top=max(top, 1) if not html_path else max(top, 10), heads=as_json)
    maps = opened.attention(ids, [layer], None if head is None else [head]) if layer is not None else None
    if html_path:
        _write(html_path, opened, ids, trace, maps, layer, head, text)
    if as_json:
        print(json.dumps(_json(trace, maps, lens, layer), ensure_ascii=False))
        return
    from ..look.terminal import attention_lines, lens_lines, trace_lines
    if maps is not None and layer is not None:
        lines = attention_lines(maps, layer, head, width)
    elif lens:
        lines = lens_lines(trace.lens, width)
    else:
        lines = trace_lines(trace, top)
    print("\n".join(lines))


def _layer_head(text: str | None) -> tuple[int | None, int | None]:
    from ..errors import OptionError, quoted
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:\.(\d{1,5}))?", text, re.ASCII)
    if not match:
        raise OptionError(f"--attention takes a layer, or a layer and a head, such as 5 or 5.1, found {quoted(text)}")
    return int(match[1]), None if match[2] is None else int(match[2])


def _write(path: str, model: Any, ids: list[int], trace: Any, maps: Any, layer: int | None, head: int | None, text: str) -> None:
    from ..files import write_file
    from ..look.pictures import attention_html, lens_html, together, trace_html
    pictures = [("Surprise", trace_html(trace)), ("Logit lens", lens_html(trace.lens))]
    if maps is not None:
        pictures.append((f"Attention of layer {layer}", attention_html(maps, layer, head)))
    write_file(path, together(pictures, f"{model.path.name}: {text[:60]}"))


def _json(trace: Any, maps: Any, lens: bool, layer: int | None) -> dict[str, Any]:
    found: dict[str, Any] = trace.to_dict()
    if lens:
        at = trace.lens
        found["lens"] = [{"layer": number, "positions": [[{"text": at.vocabulary[int(i)], "p": float(p)} for i, p in zip(ids, probs)]
                                                         for ids, probs in zip(at.top_ids[row], at.top_probs[row])]} for row, number in enumerate(at.layers)]
    if maps is not None:
        found["attention"] = {"layer": layer, "heads": {str(h): [[float(w) for w in row[:q + 1]] for q, row in enumerate(maps.maps[layer][j])]
                                                        for j, h in enumerate(maps.heads[layer])}}
    return found
