"""`python -m uxnet`."""

from uxnet.cli.main import program

program()
