"""`freshet demo`: runs the whole system on one machine and writes a report with three users' stories.

`workers/supervision` starts the processes.

May import: training, writing, measurement, supervision, data, kafka, home, terminal.
"""
