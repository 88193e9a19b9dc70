"""The same job in other stream processors, run in a separate environment."""
