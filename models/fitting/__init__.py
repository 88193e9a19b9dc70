"""`freshet fit`: turns a data set into a calibrated model version, for Freshet's composition or any row of the table.

Building and training of systems is in `systems`; what a worker loads is in `serving`.

May import: serving, systems, systems.freshet, systems.lwgr, calibration, evidence, knowledge, generative, language,
scorers, trust, measuring, data.
"""
