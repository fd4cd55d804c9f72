"""Figures under load, on this machine's loopback alone. `python -m experiments.load --help`."""
