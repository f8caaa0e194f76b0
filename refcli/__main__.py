"""`python -m refcli` and the console script."""

from __future__ import annotations


def main() -> None:
    """Run the command line and leave with its documented exit code."""
    from refcli.cli.app import run

    run()


if __name__ == "__main__":
    main()
