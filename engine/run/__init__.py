"""The step and all it needs: program, weights, KV cache, prefix cache, RoPE tables, memory plan, threads, scheduler. Knows nothing of text and sampling."""
