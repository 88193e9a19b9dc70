"""The price of a refresh under storms, slow and dead GPUs, and budgets."""
