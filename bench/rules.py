"""How often presence is wrong, by "a tie goes to online" and by the rule of batches: `python bench/rules.py`.

It plays the recordings of real OpenIM servers to the model that presence is tested against, and compares the result
with OpenIM's own record at each pause.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import model
import recorded

from shared.events import Event


def tie(events: list[Event]) -> list[int]:
    """The platforms that are online if each event is a batch of its own."""
    return model.platforms(event._replace(operation_id="") for event in events)


def main() -> None:
    print("| recording | OpenIM | acts | rule | wrong | in 100 acts | ghosts | falsely offline | wrong at the end |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in recorded.CHURNS:
        recording = recorded.load(name)
        for rule, title in ((tie, "a tie goes to online"), (model.platforms, "batches")):
            found = recorded.compare(recording, rule)
            wrong = found.ghosts + found.false_offlines
            cells = [f"`{name}`", recording.openim, f"{recording.acts:,}", title, f"{wrong:,}"]
            cells += [f"{100 * wrong / recording.acts:.2f}", f"{found.ghosts:,}", str(found.false_offlines)]
            print(f"| {' | '.join([*cells, f'{len(found.now)}'])} |")


if __name__ == "__main__":
    main()
