"""The item–item closed form (EASE with a fading history) and the similarity of items' words.

How much of it counts is calibrated in `models/calibration`.

May import: scorers, data.
"""
