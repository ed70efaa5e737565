"""The emulator: a kernel's CUDA or HIP C++ text, compiled for the host against another prelude, run under checks."""
