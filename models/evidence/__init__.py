"""EASE item–item weights with a decaying history, and the word similarity of item texts.

The weight of this evidence in the scores is calibrated in `models/calibration`.

May import: scorers, data.
"""
