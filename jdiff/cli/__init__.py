"""The `jdiff` command."""
