"""The place where `Chat` was found before the engine had wings: `from llamina.engine.chat import Chat` goes on working."""
from .answers.chat import Chat

__all__ = ["Chat"]
