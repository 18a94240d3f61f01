"""`python -m tokenq` is the `tokenq` command."""

from tokenq.cli.main import entry

if __name__ == "__main__":
    entry()
