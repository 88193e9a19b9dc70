"""The read model: what the topics, the store and the models say of a user, an item and the whole, as plain data.

It decides nothing and writes to no topic. No torch: it must start within seconds and stay small. `workers/console`
serves it.

May import: –.
"""
