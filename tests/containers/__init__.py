"""docker-compose.yml without a container engine: `python -m tests.containers.run` starts what it describes.

compose.py reads the files, machine.py makes the namespaces, run.py tells the story.
"""
