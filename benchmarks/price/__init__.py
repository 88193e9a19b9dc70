"""The price of a refresh under load peaks, slow and failed GPUs, and budgets."""
