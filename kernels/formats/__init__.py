"""Weight block formats: one file per family. `table` lists every format a GGUF file can hold, without importing Numba."""
