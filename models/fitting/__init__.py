"""`freshet fit`: a data set in, a calibrated version out; Freshet's own composition or any row of the table.

How a system is built and trained is in `systems`; what a worker loads is in `serving`.

May import: serving, systems, systems.freshet, systems.lwgr, calibration, knowledge, generative, language, scorers,
trust, measuring, data.
"""
