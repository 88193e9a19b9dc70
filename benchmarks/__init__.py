"""Benchmarks, one folder each; `python -m benchmarks.NAME.run --help` explains them. Results are in `results/`."""
