"""`python -m kdbench` is the command `kdbench`."""

from kdbench.cli.app import main

if __name__ == "__main__":
    main()
