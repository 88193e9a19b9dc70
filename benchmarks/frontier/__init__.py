"""Gain against language model calls, for every refresh policy."""
