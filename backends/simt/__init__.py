"""What CUDA and HIP share: from tiles to the code of one thread. `compile` lists the passes; a map of the modules in
the order in which a kernel meets them:

- TILE to PLACED. `along`, `separate` prepare; `place` writes down what layout inference (`infer`, by `costs`) finds
  for the instructions of the target (`instructions`, `group_products`) and which operands are copied to shared memory
  (`stage`). `pipeline` overlaps copies of loops: `pipelined_loop` is what its ways share, `bulk_ring` the one of bulk
  copies, `multicast` across clusters, `schedule` for AMD. `through_registers`, `stores`, `aside` rewrite other copies.
- PLACED to THREAD. `lower`, by kind: `access` (memory; windows of AMD's: `window`), `dots`, `matrix` and `transposed`
  (their operands), `paired` (narrow numbers), `collect` (reductions, scans), `sorting`, `bulk` (TMA), `dma` (AMD's
  copies); `exchange` moves tiles between threads.
- THREAD to THREAD. `strength`, `split` improve loops, `shared_memory` allocates, `barriers` and `asynchronous`
  synchronise, `dma` counts waits, `interleave`, `overlap` and `roles` schedule.
- On a device. `products` (machine code in the cache), `driver`, `launch`, `start` (checks, starts a call), `export`.
- Everywhere. `target` (what a machine has), `registers` (which lane holds what), `facts` and `block_index` (what is
  known of indices).
"""
