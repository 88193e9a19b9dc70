"""`freshet demo`: events fed to a whole stack, what came out measured, drawn and reported.

Starting processes is in `workers/supervision`.

May import: training, measurement, supervision, data, kafka, home, terminal.
"""
