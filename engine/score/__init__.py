"""What a model knows, measured: scores, labels, tasks, perplexity."""
