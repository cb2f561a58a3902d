"""Runs the command line as ``python -m fedcompress``."""

from fedcompress.cli.main import main

if __name__ == "__main__":
    main()
