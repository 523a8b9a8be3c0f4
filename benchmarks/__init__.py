"""Benchmarks and the data of the demos; run one with `python -m benchmarks.NAME`."""
