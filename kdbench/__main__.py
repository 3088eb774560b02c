"""`python -m kdbench` is the command `kdbench`."""

from kdbench.cli.app import main

if __name__ == "__main__":  # a timing starts a new process, which imports this module again
    main()
