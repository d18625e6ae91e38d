"""./dev soak [PROGRAM...]: real programs under load through checkpoints and restores."""

import argparse
import json
import sys
from dataclasses import asdict

from e2e.soak.programs import PROGRAMS
from e2e.soak.soak import Result, Soak
from e2e.testbed.testbed import Testbed


def arguments():
    parser = argparse.ArgumentParser(prog="dev soak", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--checkpoints", type=int, default=100, metavar="N")
    parser.add_argument("--restores", type=int, default=20, metavar="N")
    parser.add_argument("--json", action="store_true", help="one object a program instead of its line")
    given = parser.parse_args()
    unknown = [name for name in given.programs if name not in PROGRAMS]
    if unknown:
        parser.error(f"no program {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    return given


def show_progress(result):
    if sys.stderr.isatty():
        print(f"\r{result.line()}\033[K", end="", file=sys.stderr, flush=True)


def soak(program, given):
    missing = program.missing()
    if missing:
        return Result(program.name, errors=[f"missing {', '.join(missing)}: ./dev setup --soak"])
    with Testbed() as bed:  # one for each: its registry grows with every restore
        return Soak(bed, program, show_progress).run(given.checkpoints, given.restores)


def main():
    given = arguments()
    failed = False
    for name in given.programs or PROGRAMS:
        result = soak(PROGRAMS[name], given)
        failed = failed or bool(result.errors)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        print(json.dumps(asdict(result)) if given.json else result.line(), flush=True)
        for error in () if given.json else result.errors:
            print(f"    {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
