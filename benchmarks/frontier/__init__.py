"""Gain against language model calls of every refresh policy."""
