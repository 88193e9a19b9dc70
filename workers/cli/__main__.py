"""`python -m workers.cli` is `freshet`."""

from workers.cli import main

main()
