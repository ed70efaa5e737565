"""The renderer of C-family text that CUDA and HIP share."""
