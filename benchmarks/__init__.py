"""Benchmarks: `python -m benchmarks` prints one table, ours beside torch in the same run."""
