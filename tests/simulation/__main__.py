"""`python -m tests.simulation --seeds N`: as many lives as one likes."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import traceback

from tests.simulation.life import live
from tests.simulation.options import drawn


def _quiet(is_one_of_many: bool) -> contextlib.AbstractContextManager[object]:
    """Keep the log of a seed that fails to those who ask for it alone."""
    silence = contextlib.redirect_stdout(io.StringIO())
    return silence if is_one_of_many else contextlib.nullcontext()


def main() -> int:
    """Let seeds live, and name those that fail; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone, with its options")
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    if given.seed is not None:
        seeds = range(given.seed, given.seed + 1)
        print(drawn(given.seed))
    failed, calls = [], 0
    began_s = time.process_time()
    for seed in seeds:
        seed_s = time.process_time()
        try:
            with _quiet(given.seed is None):
                outcome = live(seed)
        except Exception as error:
            failed.append(seed)
            at = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed} FAILED: {str(error)[:400]} [{at.name}: {at.line}]")
            if given.seed is not None:
                traceback.print_exc()
            continue
        ended = sum(outcome.statuses.values())
        calls += ended
        spent_s = time.process_time() - seed_s
        print(
            f"seed {seed}: {ended} calls in {outcome.virtual_s:.1f} virtual seconds, "
            f"{spent_s:.2f} s, {outcome.digest[:16]}"
        )
    spent_s = time.process_time() - began_s
    print(f"{len(seeds)} seeds, {calls} calls, {spent_s:.1f} s of one core; failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
