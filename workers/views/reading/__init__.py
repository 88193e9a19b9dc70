"""The read model: topics, store and models read, and kept as the interface of `workers/views` shows them.

It decides nothing and writes to no topic. No torch: it must start within seconds and stay small. The process that it
runs in is `workers/console/role.py`.

May import: views, measurement, supervision, store, kafka, home.
"""
