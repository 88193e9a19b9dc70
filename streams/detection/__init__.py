"""Sequential statistics on plain numbers: interest drift, trust in knowledge, pooled tests of versions and codewords.

This room knows neither user states nor messages.

May import: –.
"""
