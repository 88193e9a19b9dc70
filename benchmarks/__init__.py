"""Measured claims: a folder per benchmark, `python -m benchmarks.NAME.run --help` explains each. Results are in
`results/`."""
