"""`llamina pull`: a model from the Hugging Face hub into the models folder."""
from __future__ import annotations

import click

from ..errors import FileError, OptionError
from .options import debug_option
from .progress import Progress


@click.command("pull")
@click.argument("name", metavar="hf:ORG/REPO[:QUANT]")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(name: str, quiet: bool) -> None:
    """Fetch a model from the Hugging Face hub into the models folder; prints the short name that commands then take for it.

    Needs the extra hub (pip install 'llamina[hub]'). Interrupted, it goes on where it stopped when it is called again; every file's hash is checked
    before it gets its name. What may stand after hf: is explained in docs/hub.md.

    \b
    Examples:
      llamina pull hf:org/repo:Q4_K_M
      llamina pull hf:org/repo/model.Q8_0.gguf
    """
    from ..home.hub import download, is_hub_name
    from ..home.library import models_folder, short_name
    if not is_hub_name(name):
        raise OptionError(f"{name}: expected a name of the hub such as hf:org/repo:Q4_K_M or hf:org/repo/file.gguf")
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be made ({error.strerror}): set LLAMINA_HOME to a folder that can") from None
    with Progress(quiet) as progress:
        paths = download(name, folder, progress.loading)
    print(short_name(paths[0], folder))
