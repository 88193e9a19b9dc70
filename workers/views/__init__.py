"""The read model's interface: what can be asked of users, items and the whole, and the plain data that answers.

`workers/views/reading` makes it from topics, store and models; `workers/console` serves it.

May import: –.
"""
