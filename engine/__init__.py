"""The runtime: GGUF reading, configuration, weights, forward pass, KV cache, tokenizer, sampling, generation, command line."""
