"""GGUF files: the header with its bounds (header.py), and the tensors behind it (file.py). Knows nothing of models."""
