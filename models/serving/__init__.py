"""What the workers load and ask: ranking models, requests, and sources of knowledge as they are saved and run.

No training; topics and the store are in `workers/roles`.

May import: systems, systems.freshet, systems.coco, systems.grasp, systems.kar, systems.lwgr, evidence, knowledge,
generative, language, scorers, compute, data.
"""
