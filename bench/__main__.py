"""./dev bench [NAME...] [--quick] [--json]: all measurements, or some; docs/performance.md says what they are."""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench import calls, compression, containers, lazy, machine, primitives, stall, startup, trees
from bench.harness import RESULTS, Run
from e2e.peers.tools import CRIU

ITEMS = {item.__name__: item for item in (
    trees.frozen, stall.stall, containers.containers, trees.restore, lazy.lazy, trees.together, trees.growth,
    compression.compression, calls.calls, startup.startup, primitives.primitives)}


def arguments():
    listed = "\n".join(f"  {name:12}{item.__doc__}" for name, item in ITEMS.items())
    parser = argparse.ArgumentParser(prog="./dev bench", epilog=f"names:\n{listed}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="what to measure; without one, all")
    parser.add_argument("--quick", action="store_true", help="small sizes, once: whether it works")
    parser.add_argument("--no-peer", action="store_true", help="without CRIU")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    parsed = parser.parse_args()
    unknown = set(parsed.name) - set(ITEMS)
    if unknown:
        parser.error(f"no such name: {', '.join(sorted(unknown))}")
    return parsed


def main():
    chosen = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # all is cleaned up then, too
    with tempfile.TemporaryDirectory(prefix="stasis-bench-", dir="/var/tmp") as name:
        run = Run(chosen.quick, Path(name), not chosen.no_peer and Path(CRIU[-1]).exists())
        facts = machine.facts(name)
        for item in chosen.name or ITEMS:
            start = time.monotonic()
            print(f"{item}: {ITEMS[item].__doc__}", flush=True)
            try:
                ITEMS[item](run)
            except Exception as error:  # the others are measured all the same
                run.failed(item, "all of it", f"{type(error).__name__}: {error}")
            run.write(facts)
            print(f"    {time.monotonic() - start:.0f} s", flush=True)
    print(run.json(facts) if chosen.json else run.markdown(facts))
    print(f"bench: written to {RESULTS}", file=sys.stderr)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
