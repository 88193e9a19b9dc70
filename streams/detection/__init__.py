"""Sequential statistics on plain numbers: interest drift, a user's trust, pooled tests of versions and codewords.

Users and messages are not known here.

May import: –.
"""
