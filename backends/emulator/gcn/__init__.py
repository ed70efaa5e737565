"""An interpreter of the assembly that clang makes of emitted text for AMD's GPUs: it checks the prelude they use."""
