"""The table of systems, the registry of their parts, and the recipe that trains a row; each paper's system is a folder.

Parts that several systems share are in `knowledge`.

May import: systems.freshet, systems.coco, systems.grasp, systems.kar, systems.lwgr, calibration, knowledge,
generative, language, scorers, measuring, compute, data.
"""
