"""The form of what is known of gateways, in a hash on the queue's server: a field for each process, and two sums."""

from collections.abc import Mapping
from contextlib import suppress

from pydantic import TypeAdapter

from shared.gateways.batches import Name
from shared.gateways.process import Process
from shared.gateways.view import Gateways, view

#: The two sums: what forgotten processes and runs contributed, and numbers that came after all.
FORGOTTEN_HEARD = "forgotten_heard"
FORGOTTEN_LOST = "forgotten_lost"

_PROCESS = TypeAdapter(Process)


def encode_name(name: Name) -> str:
    return f"{name[0]} {name[1]}"


def encode(process: Process) -> bytes:
    return _PROCESS.dump_json(process)


def decode(text: bytes | None) -> Process:
    """The process that `encode` wrote; an empty one if the text is anything else."""
    with suppress(ValueError):
        process = _PROCESS.validate_json(text or b"")
        if process.runs and all(run.stretches for run in process.runs):
            return process
    return Process()


def decode_all(fields: Mapping[bytes, bytes]) -> dict[Name, Process]:
    """All processes that can be decoded."""
    processes = {}
    for name, text in fields.items():
        with suppress(ValueError):
            peer, _, pid = name.decode().rpartition(" ")
            if (process := decode(text)).runs:
                processes[peer, int(pid)] = process
    return processes


def read(fields: Mapping[bytes, bytes], now_ms: int) -> Gateways:
    """What people see of the hash at that time."""
    sums = []
    for name in (FORGOTTEN_HEARD, FORGOTTEN_LOST):
        text = fields.get(name.encode(), b"0")
        sums.append(int(text) if text.isdigit() else 0)
    return view(decode_all(fields), now_ms, *sums)
