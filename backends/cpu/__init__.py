"""The CPU backend: TILE -> PLACED (loop nests) -> THREAD (vectors) -> LLVM IR -> machine code."""
