"""The table of systems, the registry of their parts, and the training of a row. Each paper's system has a folder.

Parts shared by several systems are in `knowledge`.

May import: systems.freshet, systems.coco, systems.grasp, systems.kar, systems.lwgr, calibration, evidence,
knowledge, generative, language, scorers, measuring, compute, data.
"""
