"""The catalogue as it is now: the items of a fit, changed by what came on the topic `catalogue`.

`models/serving` makes items that came later recommendable.

May import: kafka, home.
"""
