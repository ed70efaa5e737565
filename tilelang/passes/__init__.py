"""Passes: functions `pass(fn, target) -> fn`, one per file."""
