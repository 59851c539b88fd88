"""Text: tokenizers, chat templates and their sandbox, tool calls, stop strings. Knows nothing of weights."""
