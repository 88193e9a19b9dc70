"""What the workers load and call: ranking models, requests, and knowledge sources in saved and running form.

There is no training here; topics and the store are in `workers/roles`.

May import: systems, systems.freshet, systems.coco, systems.grasp, systems.kar, systems.lwgr, evidence, knowledge,
generative, language, scorers, compute, data.
"""
