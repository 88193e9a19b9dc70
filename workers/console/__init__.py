"""The console's server: the HTTP interface `/v1`, the pages, and the role that serves both.

What is shown comes from `workers/views`; the pages are in `workers/console/pages`.

May import: console.pages, views.reading, views, kafka.
"""
