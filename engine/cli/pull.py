"""`llamina pull`: a model from the Hugging Face hub into the models folder."""
from __future__ import annotations

from pathlib import PurePosixPath

import click

from ..errors import FileError, OptionError, UnsupportedError
from ..units import size
from . import one_line
from .options import debug_option
from .progress import Progress


@click.command("pull")
@click.argument("name", metavar="ORG/REPO[:QUANT]")
@click.option("--anyway", is_flag=True, help="Fetch it even if it would not run here.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(name: str, anyway: bool, quiet: bool) -> None:
    """Fetch a model from the Hugging Face hub into the models folder; prints the short name that commands then take for it.

    The name may also be ORG/REPO/FILE.gguf, have hf: before it, or be an address of the hub as copied from a browser. The file's header is read first: a model
    that would not run here is not downloaded. Needs the extra hub (pip install 'llamina[hub]'). Interrupted, it goes on where it stopped when it is
    called again; every file's hash is checked before it gets its name. See docs/hub.md.

    \b
    Examples:
      llamina pull TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M
      llamina pull hf:org/repo/model.Q8_0.gguf
      llamina pull https://huggingface.co/org/repo/blob/main/model.Q8_0.gguf
    """
    from ..home.hub import download, find_gguf, from_address
    from ..home.hub_peek import judge_remote
    from ..home.library import is_hub_name, models_folder, short_name
    name = from_address(name)
    if not is_hub_name(name):
        if name.count("/") < 1 or name.startswith((".", "/", "~")):
            raise OptionError(f"{name}: expected a name of the hub such as org/repo:Q4_K_M or org/repo/file.gguf, or an address copied from the browser")
        name = f"hf:{name}"
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be made ({error.strerror}): set LLAMINA_HOME to a folder that can") from None
    with Progress(quiet) as progress:
        progress.stage("asking the hub")
        found = find_gguf(name)
        listing, files = found
        verdict = None
        if not listing.cached and not (folder / PurePosixPath(files[0].path).name).exists():
            progress.stage("reading the model's header")
            verdict = judge_remote(listing, files)
            if verdict is not None:
                if verdict.problem and not anyway:
                    raise UnsupportedError(f"{listing.name}: {files[0].path} would not run here: {verdict.problem}; nothing was downloaded "
                                           "(--anyway does it all the same)")
                progress.note(one_line(f"{files[0].path}: {size(verdict.bytes)}; {verdict.what}; {verdict.runs}"))
        paths = download(name, folder, progress.loading, found)
        short = short_name(paths[0], folder)
        first = f'generate {short} -p "Once upon a time"' if verdict and verdict.chat != "own" else f"chat {short}"
        progress.note(f"it is there: llamina {first}")
    print(short)
