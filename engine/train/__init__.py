"""Training: what a model learns in an adapter, on the bytes and kernels that serve it."""
