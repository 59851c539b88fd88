"""All pages, by GGUF's name of the architecture. A family's file is imported here and nowhere else."""
from __future__ import annotations

from . import llama
from .page import Page

PAGES: dict[str, Page] = {page.architecture: page for page in (llama.PAGE,)}
