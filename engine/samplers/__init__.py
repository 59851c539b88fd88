"""The stages of sampling, each a small function on NumPy arrays: `penalties` change logits, `filters` choose candidates; `arithmetic` is what they
compute with. engine/sampling.py puts them in order; docs/sampling.md explains them."""
