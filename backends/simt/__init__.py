"""What CUDA and HIP share: layout inference, placement and lowering to threads."""
