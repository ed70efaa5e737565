"""The CUDA backend: instructions, text, compilation to cubin."""
