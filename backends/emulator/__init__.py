"""The emulator: the CUDA C++ text of a kernel, compiled for the host against another prelude and run under checks."""
