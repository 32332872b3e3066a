"""`python -m tests.benchmarks NAME [--json]`: measures side by side, and prints a table or one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import sys

import django


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from tests.benchmarks import failover, handover, idle, reads, relay, sides, writers

    benchmarks = {
        "failover": failover,
        "handover": handover,
        "idle": idle,
        "reads": reads,
        "relay": relay,
        "writers": writers,
    }
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", choices=benchmarks, metavar="NAME", help="one of %(choices)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    options = parser.parse_args()
    benchmark = benchmarks[options.name]
    figures = benchmark.run()
    if options.json:
        json.dump({"benchmark": options.name, **sides.machine(), "figures": figures}, sys.stdout, indent=2)
        print()
        return
    print(", ".join(f"{name} {value}" for name, value in sides.machine().items()))
    lines = benchmark.table(figures)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
