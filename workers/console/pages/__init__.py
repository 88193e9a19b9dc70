"""The console's pages for people, made on the server from templates.

`routes` says which page answers at which path. Pages know `workers/views` and nothing of topics or files.

May import: views.
"""
