"""`python -m kdbench` is the command `kdbench`."""

from kdbench.cli import main

main()
