"""What a model file says of its architecture: configuration, and which tensors it implies. Knows nothing of threads and memory."""
