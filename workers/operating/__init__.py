"""What an operator changes in a running system, from the command line or the console, erasures among it; the console's
audit log.

Deployments themselves are in `schemas/deployments.py`.

May import: measurement, store, kafka, home.
"""
