"""`python -m jdiff` is the `jdiff` command."""

from jdiff.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
