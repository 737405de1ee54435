"""Settings: read once, and a wrong value names its variable."""

from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import SECRETS, Settings, is_given, load, without_password


def test_the_defaults_are_the_contracts() -> None:
    settings = load({})
    assert settings.redis_url == settings.queue_url == "redis://127.0.0.1:6379/0"
    assert (settings.port, settings.admin_port, settings.max_body_bytes) == (10006, 10016, 16384)
    assert (settings.journal_max_bytes, settings.changes_maxlen) == (1073741824, 1000000)
    assert (settings.key_prefix, settings.callback_path) == ("presence", "")


def test_the_queue_lives_where_presence_lives_unless_said_otherwise() -> None:
    assert load({"PRESENCE_REDIS_URL": "redis://a:1/0"}).queue_url == "redis://a:1/0"
    both = load({"PRESENCE_REDIS_URL": "redis://a:1/0", "PRESENCE_QUEUE_URL": "redis://b:1/0"})
    assert both.queue_url == "redis://b:1/0"


def test_a_log_level_may_be_written_in_any_case() -> None:
    assert load({"PRESENCE_LOG_LEVEL": "DEBUG"}).log_level == "debug"


def test_an_empty_variable_is_not_set() -> None:
    assert load({"PRESENCE_PORT": ""}) == load({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PRESENCE_PORT", "65536"),
        ("PRESENCE_PORT", "http"),
        ("PRESENCE_REDIS_URL", "localhost:6379"),
        ("PRESENCE_QUEUE_URL", "memcached://x"),
        ("PRESENCE_REDIS_URL", "redis://host:port/0"),
        ("PRESENCE_REDIS_URL", "redis://host/zero"),
        ("PRESENCE_REDIS_URL", "redis://host/0?socket_timeout=soon"),
        ("PRESENCE_REDIS_URL", "redis://host/0?no_such_option=1"),
        ("PRESENCE_REDIS_URL", "redis://one:1,two:2/0"),
        ("PRESENCE_REDIS_URL", "redis+sentinel://one,two"),
        ("PRESENCE_QUEUE_URL", "redis+cluster://host"),
        ("PRESENCE_CALLBACK_PATH", "secret"),
        ("PRESENCE_JOURNAL_MAX_BYTES", "0"),
        ("PRESENCE_JOURNAL_FSYNC", "never"),
        ("PRESENCE_KEY_PREFIX", "a b"),
        ("PRESENCE_KEY_PREFIX", "a:b"),
        ("PRESENCE_KEY_PREFIX", "rq"),
        ("PRESENCE_CALLBACK_PATH", "/my secret"),
        ("PRESENCE_CALLBACK_PATH", "/s?x"),
        ("PRESENCE_HOST", "[::"),
        ("PRESENCE_HOST", "[localhost]"),
        ("PRESENCE_HOST", "127.0.0.1:10006"),
        ("PRESENCE_ADMIN_HOST", "[::1]:10016"),
        ("PRESENCE_HOST", "a..b"),
        ("PRESENCE_ADMIN_HOST", "a" * 64),
        ("PRESENCE_REDIS_URL", "redis://redis..internal/0"),
        ("PRESENCE_QUEUE_URL", "rediss://host?ssl_cert_reqs=CERT_NONE"),
        ("PRESENCE_FORWARD_URL", "http://business..internal"),
        ("PRESENCE_OPENIM_API", f"http://{'a' * 64}:10002"),
        ("PRESENCE_BASIC_AUTH", "user:\udcff"),
        ("PRESENCE_CALLBACK_PATH", "/\udcff"),
        ("PRESENCE_CHANGES_MAXLEN", "-1"),
        ("PRESENCE_CHANGES_MAXLEN", "1" + "0" * 20),
        ("PRESENCE_RETENTION_SECONDS", "1" + "0" * 16),
        ("PRESENCE_ONLINE_LEASE_SECONDS", "1" + "0" * 16),
        ("PRESENCE_LOG_LEVEL", "loud"),
        ("PRESENCE_LOG_FORMAT", "xml"),
        ("PRESENCE_TYPO", "1"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: ") as error:
        load({name: value})
    assert "\n" not in str(error.value)


def test_openims_address_and_its_secret_go_together() -> None:
    for name in ("PRESENCE_OPENIM_API", "PRESENCE_OPENIM_SECRET"):
        with pytest.raises(SettingsError, match=f"^{name}: does nothing without"):
            load({name: "http://openim:10002"})


SOUND = {
    "basic_auth": "openim:geheim",
    "callback_path": "/geheim",
    "redis_url": "redis://:geheim@host/0",
    "journal_dir": "/journal",
    "key_prefix": "im",
    "log_level": "debug",
    "port": "10006",
    "allowed_networks": "10.0.0.0/8",
}


@pytest.mark.parametrize(("name", "value"), SOUND.items())
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{}\n", r"ends with a newline \(U\+000A\)"),
        ("{}\r", r"ends with a carriage return \(U\+000D\)"),
        ("{}\r\n", "ends with a newline"),
        ("{} ", r"ends with a blank \(U\+0020\)"),
        ("\t{}", r"begins with a tab \(U\+0009\)"),
        ("{}\u00a0", r"ends with no-break space \(U\+00A0\)"),
        ("\ufeff{}", r"begins with zero width no-break space \(U\+FEFF\)"),
        ("{}\x00", r"ends with a control character \(U\+0000\)"),
        ('"{}"', r"is in quotes, quotation mark \(U\+0022\)"),
        ("'{}'", r"is in quotes, apostrophe \(U\+0027\)"),
        ("\u201c{}\u201d", "is in quotes, left double quotation mark"),
    ],
)
def test_what_files_and_shells_bring_in_is_named_and_no_secret_shown(
    name: str, value: str, form: str, words: str
) -> None:
    variable = f"PRESENCE_{name.upper()}"
    load({variable: value})
    with pytest.raises(SettingsError, match=f"^{variable}: {words}") as error:
        load({variable: form.format(value)})
    assert "geheim" not in str(error.value)
    assert str(error.value).isprintable()


OPENIM = ("openim_api", "openim_secret")


def test_the_secrets_are_those_that_are_never_shown() -> None:
    assert ("redis_url", "queue_url", "admin_auth", "callback_path", "basic_auth", "forward_url", *OPENIM) == SECRETS


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_come_from_a_file(tmp_path: Path, end: str) -> None:
    (tmp_path / "secret").write_bytes(b"openim:ge heim" + end.encode())
    given = {"PRESENCE_BASIC_AUTH_FILE": str(tmp_path / "secret")}
    assert load(given).basic_auth == "openim:ge heim"
    assert load(given | {"PRESENCE_BASIC_AUTH": ""}) == load(given)
    assert is_given(given, "PRESENCE_BASIC_AUTH")
    assert not is_given(given, "PRESENCE_REDIS_URL")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (b"openim:geheim\n\n", r"ends with a newline"),
        (b"openim:geheim ", r"ends with a blank"),
        (b"geheim", "must be user:password"),
        (b"openim:geheim\xff", "must name a text file"),
        (b"openim:geheim" * 10_000, "too long"),
        (None, "the file cannot be read: No such file"),
    ],
)
def test_a_wrong_file_of_a_secret_is_named_and_not_shown(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(SettingsError, match=f"^PRESENCE_BASIC_AUTH_FILE: .*{words}") as error:
        load({"PRESENCE_BASIC_AUTH_FILE": str(tmp_path / "secret")})
    assert "geheim" not in str(error.value)


def test_a_secret_comes_from_one_place(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("openim:geheim")
    with pytest.raises(SettingsError, match=r"^PRESENCE_BASIC_AUTH_FILE: PRESENCE_BASIC_AUTH is set too"):
        load({"PRESENCE_BASIC_AUTH": "a:b", "PRESENCE_BASIC_AUTH_FILE": str(tmp_path / "secret")})
    with pytest.raises(SettingsError, match=r"^PRESENCE_PORT_FILE: there is no such setting"):
        load({"PRESENCE_PORT_FILE": str(tmp_path / "secret")})


def test_a_control_character_within_a_value_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^PRESENCE_BASIC_AUTH: has a newline \(U\+000A\) in it"):
        load({"PRESENCE_BASIC_AUTH": "openim:ge\nheim"})


def test_quotes_that_belong_to_a_value_are_kept() -> None:
    assert load({"PRESENCE_BASIC_AUTH": 'openim:"x"'}).basic_auth == 'openim:"x"'


def test_what_kubernetes_injects_for_its_services_is_ignored() -> None:
    injected = {
        "PRESENCE_SERVICE_HOST": "10.96.0.7",
        "PRESENCE_SERVICE_PORT": "10006",
        "PRESENCE_SERVICE_PORT_CALLBACKS": "10006",
        "PRESENCE_PORT_10006_TCP": "tcp://10.96.0.7:10006",
        "PRESENCE_PORT_10006_TCP_ADDR": "10.96.0.7",
        "PRESENCE_PORT_10006_TCP_PORT": "10006",
        "PRESENCE_PORT_10006_TCP_PROTO": "tcp",
        "PRESENCE_RECEIVER_SERVICE_HOST": "10.96.0.8",
        "PRESENCE_RECEIVER_PORT": "tcp://10.96.0.8:10006",
        "PRESENCE_RECEIVER_PORT_53_UDP_ADDR": "10.96.0.8",
    }
    assert load(injected) == load({})


@pytest.mark.parametrize(
    ("variable", "service"),
    [("PRESENCE_PORT", "presence"), ("PRESENCE_WORKER_ADMIN_PORT", "presence-worker-admin")],
)
def test_a_port_that_kubernetes_has_set_says_where_it_comes_from(variable: str, service: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^{variable}: Kubernetes has set it, for its Service {service}: "
    ) as error:
        load({variable: "tcp://10.96.0.7:10006"})
    assert "enableServiceLinks: false" in str(error.value)


@pytest.mark.parametrize(("given", "taken"), [("[::]", "::"), ("::1", "::1"), ("localhost", "localhost")])
def test_a_host_may_be_written_as_in_a_url(given: str, taken: str) -> None:
    settings = load({"PRESENCE_HOST": given, "PRESENCE_ADMIN_HOST": given})
    assert (settings.host, settings.admin_host) == (taken, taken)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss://user:geheim@host:1/2", "rediss://host:1/2"),
        ("redis://host/0?password=geheim", "redis://host/0"),
        ("unix://user:geheim@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis+cluster://:geheim@one:1,[::1]:2", "redis+cluster://one:1,[::1]:2"),
        ("rediss+sentinel://a:b@one:1,two/main/0?sentinel_password=geheim", "rediss+sentinel://one:1,two/main/0"),
    ],
)
def test_a_password_does_not_reach_the_log(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_cluster_needs_a_queue_elsewhere() -> None:
    cluster = {"PRESENCE_REDIS_URL": "redis+cluster://host:7000"}
    with pytest.raises(SettingsError, match=r"^PRESENCE_QUEUE_URL: RQ needs one Redis"):
        load(cluster)
    assert load(cluster | {"PRESENCE_QUEUE_URL": "redis://host"}).redis_url == "redis+cluster://host:7000"


def test_sentinels_may_lead_to_presence_and_to_the_queue() -> None:
    url = "redis+sentinel://one,two/mymaster/0"
    assert load({"PRESENCE_REDIS_URL": url}).queue_url == url


def test_what_is_for_compose_alone_is_no_setting_of_a_program() -> None:
    assert load({"PRESENCE_WORKERS": "4", "PRESENCE_IMAGE": "presence:1"}) == load({})
