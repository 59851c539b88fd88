"""Compiled arithmetic of training: what the kernels of the forward pass leave, gone through backwards. docs/exactness.md has the order of every sum."""
