"""The CPU backend: TILE -> PLACED (loop nests) -> THREAD (vectors) -> LLVM IR -> machine code. `compile` lists the
passes; a map of the modules in the order in which a kernel meets them:

- TILE to PLACED. `place` groups tiles into nests; `dots` has the instructions that multiply.
- PLACED to THREAD. `lower`: `nests` (on `narrow`, `reductions` and `elements`, of which each is the base of the one
  before) write loops; `microkernel` multiplies; `scans`, `sorting` and `views` are as their names say. What they ask
  beforehand: `runs` (which dimension walks which axis), `inplace` (what loops carry), `ahead` (what is prefetched);
  `buffers` are the tiles in memory and indices into them.
- THREAD to LLVM. `codegen`, with `arithmetic`, `access` (memory), `control`, `math` (elementary functions), `numbers`
  (number types), `printing` and `debug` (lines of the source).
- Machine code. `machine` (the host, and LLVM's code for it), `launch` (checks and starts a call), `pool` (threads),
  `export`.
"""
