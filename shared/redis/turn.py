"""Turns: of several programs that could do something, one at a time does it."""

import secrets
from typing import Any

from redis import Redis


class Turn:
    """key: where it is noted. seconds: how long a program that is gone keeps it. Every method raises RedisError."""

    def __init__(self, client: Redis, key: str, seconds: float) -> None:
        self._client = client
        self._key = key
        self._ms = int(seconds * 1000)
        self._name = secrets.token_hex(8)

    def take(self) -> bool:
        """Takes the turn if nobody has it, and keeps it if it is ours; False if another program has it."""
        if self._client.set(self._key, self._name, nx=True, px=self._ms):
            return True
        holder: Any = self._client.get(self._key)
        if holder != self._name.encode():
            return False
        self._client.pexpire(self._key, self._ms)
        return True

    def give_up(self) -> None:
        """Lets another program have it at once, if it is ours."""
        if self.take():
            self._client.delete(self._key)
