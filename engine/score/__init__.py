"""What a model knows, measured: perplexity."""
