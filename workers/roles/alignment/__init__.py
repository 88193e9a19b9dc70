"""The alignment role: fine-tunes the language model on contradicted samples and publishes the adapter if it is better.

`models/aligning` has the training step.

May import: roles.knowledge, runtime, kafka.
"""
