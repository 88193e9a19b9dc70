"""The demo: the main job on one machine, measured, with a live screen and a report."""
