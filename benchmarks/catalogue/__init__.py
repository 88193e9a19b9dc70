"""Benchmark of a catalogue that lives."""
