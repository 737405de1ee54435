"""Long runs of the fault scenarios: `python tests/faults/run.py --rounds 10 --seed 7`.

Prints a line for each scenario, and the totals at the end. A failure names the seed that repeats it.
"""

import argparse
import json
import random
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rig import Report, rig
from scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", action="append", help="a scenario by name; may be repeated")
    parser.add_argument("--short", action="store_true", help="as short as in the test run")
    arguments = parser.parse_args()
    names = {scenario.__name__ for scenario in SCENARIOS}
    if unknown := set(arguments.only or ()) - names:
        parser.error(f"no such scenario: {', '.join(unknown)}; there are: {', '.join(sorted(names))}")
    print(f"seed {arguments.seed}", flush=True)
    reports: list[Report] = []
    failures = 0
    for number in range(arguments.rounds):
        seed = arguments.seed + number
        for scenario in SCENARIOS:
            if arguments.only and scenario.__name__ not in arguments.only:
                continue
            with rig(scenario.__name__, seed, long=not arguments.short) as made:
                try:
                    scenario(made)
                except Exception:
                    failures += 1
                    traceback.print_exc()
                    print(f"FAILED: --only {scenario.__name__} --seed {seed} repeats it", flush=True)
                reports.append(made.report)
                print(json.dumps(asdict(made.report)), flush=True)
    print(
        f"{arguments.rounds} rounds from seed {arguments.seed}: {failures} failures, "
        f"{sum(report.kills for report in reports)} kills, "
        f"{sum(report.accepted for report in reports)} events accepted, "
        f"{sum(report.lost for report in reports)} lost; slowest recovery "
        f"{max(report.recovery_seconds for report in reports)} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
