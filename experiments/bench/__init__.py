"""Benchmarks: ratios against stock, measured in one run on this machine. `python -m experiments.bench --help`."""
