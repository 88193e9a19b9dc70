"""`python -m workers.cli` runs the `freshet` command."""

from workers.cli import main

main()
