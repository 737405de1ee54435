"""What OpenIM itself says of the user, in one sentence, and what follows from it. Pure."""

from collections.abc import Collection

from shared.logs.text import safe
from shared.platforms import platform_name
from shared.truth.verdict import Verdict
from shared.why.facts import OpenIMSays
from shared.why.words import listed


def truth(user_id: str, says: OpenIMSays) -> str:
    if says.trouble:
        return f"{safe(says.trouble)}."
    recorded = says.recorded
    differs = recorded is not None and set(recorded) != set(says.platforms)
    record = f" (its own record: {where(recorded or ())})" if differs else ""
    return (
        f"OpenIM itself says: {where(says.platforms)}{record}; {_meaning(f'presence reconcile {safe(user_id)}', says)}."
    )


def where(platforms: Collection[int]) -> str:
    """Where somebody is online."""
    return f"online on {listed([*map(platform_name, platforms)], most=10)}" if platforms else "offline"


def _meaning(command: str, says: OpenIMSays) -> str:
    if not says.is_comparable:
        return "what presence holds of this user cannot be compared with that"
    return _would(command, says.verdict) if says.verdict else "this agrees with presence"


def _would(command: str, verdict: Verdict) -> str:
    """What the command does about the difference."""
    if verdict.is_fresh:
        return "an event came just now, so ask again in a few seconds"
    if verdict.corrections and not verdict.doubtful:
        return f"{command} would put it right"
    if verdict.needs_second:
        return f"{command} asks twice, and would put it right if both answers are the same"
    some = "put only a part of it right" if verdict.corrections else "leave it"
    return f"{command} would {some}, because {safe(verdict.why)}"
