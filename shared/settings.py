"""The environment, read once into one frozen object."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from shared.errors import SettingsError
from shared.keys import Keys
from shared.redis_url import parse

PREFIX = "PRESENCE_"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"

#: Settings of the contract that this version does not act on yet, with the one value it may have.
#: Starting in spite of them would leave a door open, or a promise unkept, without a word.
NOT_YET = {
    "BASIC_AUTH": "",
    "ALLOWED_NETWORKS": "",
    "TRUSTED_PROXIES": "",
    "TLS_CERT": "",
    "TLS_KEY": "",
    "FORWARD_URL": "",
    "FORWARD_OURS": "0",
}
#: Settings that only matter together with one of those above.
WITHOUT_EFFECT = {"FORWARD_MAX_BYTES"}


def _redis_url(value: str) -> str:
    parse(value)
    return value


def _queue_url(value: str) -> str:
    if parse(value).kind == "cluster":
        raise ValueError("RQ needs one Redis, no Cluster; say where one is")
    return value


def _path_prefix(value: str) -> str:
    value = value.rstrip("/")
    if value and not value.startswith("/"):
        raise ValueError("must begin with a slash")
    return value


def _key_prefix(value: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_.{}-]+", value):
        raise ValueError("may have letters, digits and _ . - { } only")
    return value


Port = Annotated[int, Field(ge=0, le=65535)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
QueueUrl = Annotated[str, AfterValidator(_queue_url)]


class Settings(BaseModel):
    """Every setting, named as its variable without `PRESENCE_`; sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    redis_url: RedisUrl = DEFAULT_REDIS_URL
    queue_url: QueueUrl = Field(
        default_factory=lambda data: data.get("redis_url", DEFAULT_REDIS_URL), validate_default=True
    )
    host: str = "0.0.0.0"  # noqa: S104  # OpenIM is on another machine or in another container
    port: Port = 10006
    processes: int = Field(1, ge=1, le=64)
    admin_host: str = "127.0.0.1"
    admin_port: Port = 10016
    worker_admin_port: Port = 0
    callback_path: Annotated[str, AfterValidator(_path_prefix)] = ""
    max_body_bytes: int = Field(16384, ge=256)
    journal_dir: Path = Path("journal")
    journal_max_bytes: int = Field(1_073_741_824, ge=1)
    journal_fsync: Literal["everysec", "always"] = "everysec"
    key_prefix: Annotated[str, AfterValidator(_key_prefix)] = "presence"
    changes_maxlen: int = Field(1_000_000, ge=1)
    online_lease_seconds: int = Field(0, ge=0)
    retention_seconds: int = Field(0, ge=0)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)] = "info"
    log_format: Literal["text", "json"] = "text"

    @property
    def presence_is_elsewhere(self) -> bool:
        """Not on the queue's server."""
        return self.redis_url != self.queue_url

    @property
    def keys(self) -> Keys:
        return Keys(self.key_prefix)


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads `PRESENCE_*`; a variable set to the empty string counts as not set.

    Raises SettingsError, whose one line names the variable and what it should be.
    """
    given = {
        name.removeprefix(PREFIX): value for name, value in environ.items() if name.startswith(PREFIX) and value != ""
    }
    values = {}
    for name, value in sorted(given.items()):
        if name in NOT_YET:
            if value != NOT_YET[name]:
                raise SettingsError(f"{PREFIX}{name}: not in this version yet; unset it")
        elif name.lower() in Settings.model_fields:
            values[name.lower()] = value
        elif name not in WITHOUT_EFFECT:
            raise SettingsError(f"{PREFIX}{name}: there is no such setting; see the README's table")
    try:
        return Settings(**values)  # type: ignore[arg-type]  # pydantic turns the strings into what each is
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = f"{PREFIX}{first['loc'][0]}".upper()
        raise SettingsError(f"{variable}: {first['msg'].removeprefix('Value error, ')}") from None


def without_password(url: str) -> str:
    """The URL as it may stand in a log: of one Redis or of several."""
    return re.sub(r"^([^:/]+://)(?:[^/?#]*@)?([^?#]*).*", r"\1\2", url, flags=re.DOTALL)
