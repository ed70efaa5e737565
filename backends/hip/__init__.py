"""The HIP backend: AMD's data-center GPUs."""
