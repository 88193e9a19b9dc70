"""Written knowledge: prompts, three kinds of language models behind one interface, and the job of `freshet describe`.

A language model's answers are input like any other: bounded, cleaned, never executed.

May import: store, terminal.
"""
