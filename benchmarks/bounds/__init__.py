"""Bounds on the harm of knowledge, compared."""
