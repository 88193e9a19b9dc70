"""What an operator changes in a running system, from the command line or the console; the audit log of the console.

Deployments themselves are in `schemas/deployments.py`.

May import: measurement, kafka, home.
"""
