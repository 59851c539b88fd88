"""`python -m llamina`: the same as the `llamina` command."""
import sys

from .engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
