"""All systems and controls under both protocols."""
