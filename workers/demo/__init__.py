"""`freshet demo`: runs the whole system on one machine and writes a report.

`workers/supervision` starts the processes.

May import: training, writing, measurement, supervision, data, kafka, home, terminal.
"""
