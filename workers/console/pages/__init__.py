"""The console's pages for people: templates, pictures, and the actions with their token and audit log.

`routes` says which page answers at which path. Pages know `workers/views` and nothing of topics or files.

May import: views, operating, measurement, terminal.
"""
