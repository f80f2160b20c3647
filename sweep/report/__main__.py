"""`python -m sweep.report [NAME] [--runs DIR] [--png]`: write a sweep's report and print its table."""

import argparse
import sys
from pathlib import Path

from lora_sweep.errors import EXIT_COMPLETE, EXIT_REFUSED, Refused
from sweep.report.write import write_report
from sweep.store.sweep_file import find_newest_sweep


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 78 if the sweep does not exist."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep.report", description="Write a sweep's report and print its table."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep (default: the one that was started last)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    parser.add_argument("--png", action="store_true", help="also write the main charts as pictures")
    options = parser.parse_args(arguments)
    try:
        print(write_report(options.runs, options.name or find_newest_sweep(options.runs), options.png))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
