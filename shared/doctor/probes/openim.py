"""Reads OpenIM's files, and asks where their URLs lead."""

import os
from functools import partial
from pathlib import Path

from shared.doctor import openim_config
from shared.doctor.openim_config import Reached, Target
from shared.doctor.openim_files import ENVIRONMENT, FILES, Found, read
from shared.doctor.probes import receiver
from shared.settings import Settings
from shared.timed import Probe

#: OpenIM's largest own file has 30 kB.
_MOST_BYTES = 1_000_000
#: A resolver may take much longer; what the files say is known without it.
REACH_SECONDS = 5.0
#: OpenIM's source says there which release it is, and may say there how it is run.
_VERSION = Path("version/version")
_COMPOSE = ("docker-compose.yml", "docker-compose.yaml", "compose.yml", "compose.yaml")


def look_at(path: Path, settings: Settings) -> tuple[Found, dict[Target, Reached]]:
    """path: the directory, or a file in it. Raises OSError if it cannot be read."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}
    found = read(_texts(path), ours)
    targets = {target for config in found.configs if (target := openim_config.target_of(config))}
    probes = {each: Probe(each.shown, partial(_reached, each, settings), REACH_SECONDS) for each in targets}
    return found, {each: probe.result() or Reached("silent", probe.trouble) for each, probe in probes.items()}


def _texts(path: Path) -> dict[str, bytes]:
    if path.is_file() and path.name not in FILES.values():
        return {path.name: _read(path)}
    folder = path.parent if path.is_file() else path
    inner = folder / "config"
    if not any((folder / name).is_file() for name in FILES.values()) and inner.is_dir():
        folder = inner
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".yml", ".yaml") and file.is_file()]
    files += [file for name in _COMPOSE if (file := folder.parent / name).is_file()]
    files += [file for each in (folder, folder.parent) if (file := each / _VERSION).is_file()]
    return {file.name: _read(file) for file in files}


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        text = opened.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:  # a part of it could say something else
        raise OSError(f"{file} has more than {_MOST_BYTES:,} bytes")
    return text


def _reached(target: Target, settings: Settings) -> Reached:
    reach, detail = receiver.reach_of(target)
    is_there = target.scheme == "https" and reach not in ("nobody", "silent")
    return Reached(
        reach, detail, receiver.certificate(target, settings, check_name=not target.is_loopback) if is_there else None
    )
