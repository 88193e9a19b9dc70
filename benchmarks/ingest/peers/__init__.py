"""The same job in other stream processors; each runs in an environment of its own."""
