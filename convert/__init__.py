"""Checkpoints of every kind in, GGUF out."""
