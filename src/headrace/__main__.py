"""`python -m headrace` is `headrace`."""

from headrace.cli.main import run

run()
