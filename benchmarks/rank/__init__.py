"""How long a ranking takes, by the size of the catalogue."""
