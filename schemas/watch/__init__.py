"""What an operator sees of a process: the table of metrics, their instruments, lag in seconds, where its time goes.

Other services read it at `/metrics`, so it crosses a process boundary like a message does. Prometheus keeps the
figures; this folder only counts. The page docs/metrics.md is made from `table.py`.
"""
