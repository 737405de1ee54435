"""OpenIM's files, in the form of each release and with each fault, and what the doctor makes of them."""

import codecs
import random
from collections.abc import Mapping
from typing import Any

import pytest

from shared.doctor import openim_config
from shared.doctor.findings import Check, Finding
from shared.doctor.openim_config import Reached, Target
from shared.doctor.openim_files import read
from shared.doctor.receiver import Certificate
from shared.settings import Settings

URL = "http://openim:geheim@receiver:10006/s3cret/callbackExample"
SETTINGS = Settings(basic_auth="openim:geheim", callback_path="/s3cret")

WEBHOOKS = f"""\
url: {URL}
beforeSendSingleMsg:
  enable: false
  timeout: 5
  failedContinue:
afterUserOnline:
  enable: true
  timeout: 5
afterUserOffline:
  enable: true
  timeout: 5
afterUserKickOff:
  enable: true
  timeout: 5
"""
CONFIG = f"""\
envs:
  discovery: ${{ENVS_DISCOVERY}}
# where callbacks go
callback:
  url: "{URL}"
  beforeSendSingleMsg:
    enable: false
    timeout: 5
    failedContinue: true
  userOnline:
    enable: true
    timeout: 5
  userOffline:
    enable: true
    timeout: 5
  userKickOff:
    enable: true
    timeout: 5
"""
OLD = f"""\
serverversion: 2.3.3
callback:
  callbackUrl : "{URL}"
  callbackBeforeSendSingleMsg:
    enable: false
    callbackTimeOut: 2
    callbackFailedContinue: true
  callbackUserOnline:
    enable: true
    callbackTimeOut: 2
  callbackUserOffline:
    enable: true
    callbackTimeOut: 2
  callbackUserKickOff:
    enable: true
    callbackTimeOut: 2
"""
ETCD = "enable: etcd\netcd:\n  rootDirectory: openim\n"
NEW_SHARE = "secret: x\nmultiLogin:\n  policy: 1\n"


def seen(
    files: Mapping[str, str | bytes],
    settings: Settings = SETTINGS,
    environment: Mapping[str, str] | None = None,
    reached: Reached | None = Reached("ours"),  # noqa: B008  # it is frozen
) -> tuple[dict[str, str], dict[str, str]]:
    """What was found, by code, and why something could not be checked."""
    texts = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    found = read(texts, environment or {})
    targets = {target for config in found.configs if (target := openim_config.target_of(config))}
    items = list(openim_config.look(found, {target: reached for target in targets if reached}, settings))
    return (
        {each.code: each.seen for each in items if isinstance(each, Finding)},
        {each.what: each.because for each in items if isinstance(each, Check) and each.state == "cannot tell"},
    )


def of_url(url: str) -> dict[str, str | bytes]:
    return {"webhooks.yml": WEBHOOKS.replace(URL, url)}


def of_webhooks(*changes: tuple[str, str]) -> dict[str, str | bytes]:
    text = WEBHOOKS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return {"webhooks.yml": text}


def config_map(**files: str) -> str:
    lines = ["apiVersion: v1", "kind: ConfigMap", "metadata:", "  name: openim-config", "data:"]
    for name, text in files.items():
        lines += [f"  {name.replace('_', '.')}: |", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines)


@pytest.mark.parametrize("files", [{"webhooks.yml": WEBHOOKS}, {"config.yaml": CONFIG}, {"config.yaml": OLD}])
@pytest.mark.parametrize(
    "written",
    [
        str.encode,
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: (text + "  # the end\n").encode(),
        lambda text: text.replace("    enable: true\n    timeout: 5", "    {enable: true, timeout: 5}").encode(),
        lambda text: text.replace("enable: true", "enable:\ttrue \t# on").encode(),
    ],
    ids=["as it is", "with CRLF", "with a byte order mark", "with a comment", "in one line", "with tabs between words"],
)
def test_the_form_of_each_release_is_read_rightly(files: Mapping[str, str], written: Any) -> None:
    assert seen({name: written(text) for name, text in files.items()})[0] == {}


def test_anchors_and_capitals_are_read_as_openim_reads_them() -> None:
    anchored = (
        f"url: {URL}\nafterUserOnline: &on\n  enable: true\n  timeout: 5\n"
        "afterUserOffline: *on\nafterUserKickOff:\n  <<: *on\n  timeout: 3\n"
    )
    assert seen({"webhooks.yml": anchored})[0] == {}
    assert seen(of_webhooks(("url:", "URL:"), ("afterUserOnline", "AfterUserOnline")))[0] == {}
    assert set(seen({"config.yaml": CONFIG.replace("userOnline", "UserOnline")})[0]) == {"P082"}


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({}, "P070", "neither"),
        ({"config.yaml": "mongo:\n  address: x\n"}, "P070", "neither"),
        (of_url("http://${CALLBACK_HOST}:10006/s3cret"), "P070", "placeholder"),
        (of_url("{{ .Values.url }}x"), "P071", "line 1"),
        (of_webhooks(("  enable", "\tenable")), "P071", "line 3: "),
        (of_webhooks(("afterUserOffline", "afterUserOnline")), "P071", "afterUserOnline is repeated"),
        ({"webhooks.yml": b"url: \xff\xfe"}, "P071", "webhooks.yml"),
        ({"webhooks.yml": "a: " + "[" * 9000}, "P071", "webhooks.yml"),
        ({"webhooks.yml": "callback:\n" + "".join(f"  {line}\n" for line in WEBHOOKS.splitlines())}, "P072", "under"),
        ({"config.yaml": CONFIG.replace("callback:", "openim:\n callback:")}, "P072", "under openim.callback:"),
        ({"webhooks.yml": CONFIG}, "P072", "reads it in config.yaml under callback:"),
        ({"config.yaml": WEBHOOKS}, "P072", "reads it in webhooks.yml at the top"),
        (of_url(""), "P073", "empty"),
        ({"config.yaml": CONFIG.replace(f'"{URL}"', "")}, "P073", "empty"),
        (of_url("webhook://receiver:10006/s3cret"), "P074", "webhook://"),
        (of_url("receiver:10006/s3cret"), "P074", "no scheme"),
        (of_url("http:///s3cret"), "P074", "no host"),
        (of_url("http://receiver:0/s3cret"), "P074", "port 0"),
        (of_url("'http://receiver:10006 /s3cret'"), "P074", "blank"),
        (of_url("' http://receiver:10006/s3cret'"), "P074", "blank"),
        (of_url('"http://receiver:10006/s3\\tcret"'), "P074", "control character"),
        (of_url("'http://openim:ge[h]eim@receiver/s3cret'"), "P074", "percent-encoded"),
        (of_url("'http://openim:ge^heim@receiver/s3cret'"), "P074", "percent-encoded"),
        (of_url("http://receiver|/s3cret"), "P074", "host"),
        (of_url("~"), "P073", "empty"),
        (of_url("http://openim:ge/heim@receiver:10006/s3cret"), "P074", "percent-encoded"),
        (of_url("http://openim:ge%heim@receiver:10006/s3cret"), "P074", "hex digits"),
        (of_url("http://openim:falsch@receiver:10006/s3cret"), "P076", "another user or password"),
        (of_url("http://receiver:10006/s3cret"), "P076", "no user and password"),
        (of_url(URL.replace("/s3cret", "")), "P077", "another path"),
        (of_url(URL.replace("/s3cret", "/s3crets")), "P077", "another path"),
        (of_url(f"{URL}?token=t"), "P079", "query"),
        (of_url(f"'{URL}#x'"), "P079", "fragment"),
        (of_url(URL.replace("receiver", "127.0.0.1")), "P081", "loopback"),
        (
            {"openim-config.yml": config_map(webhooks_yml=WEBHOOKS.replace("receiver", "localhost"))},
            "P080",
            "container",
        ),
        (
            {
                **of_url(URL.replace("receiver", "127.0.0.1")),
                "docker-compose.yml": "services:\n  im:\n    image: openim/openim-server:v3.8.3\n",
            },
            "P080",
            "container",
        ),
        (of_webhooks(("enable: true", "enable: false")), "P082", "afterUserOnline"),
        ({"config.yaml": CONFIG.replace("enable: true", "enable: false")}, "P082", "userOnline, userOffline, userKick"),
        ({"webhooks.yml": f"url: {URL}\n"}, "P082", "afterUserOnline (no enable: there), afterUserOffline"),
        (of_webhooks(("afterUserOffline:", "afterUserOfline:")), "P082", ": afterUserOffline (no enable: there)"),
        ({"webhooks.yml": WEBHOOKS.partition("afterUserKickOff")[0]}, "P083", "afterUserKickOff"),
        (
            of_webhooks(
                ("online:\n  enable: true\n  timeout: 5".replace("online", "Online"), "Online:\n  enable: true\n")
            ),
            "P084",
            "no timeout in webhooks.yml: afterUserOnline (0)",
        ),
        (
            {
                "config.yaml": OLD.replace(
                    "callbackTimeOut: 2\n  callbackUserKickOff", "callbackTimeOut: 0\n  callbackUserKickOff"
                )
            },
            "P084",
            "callbackUserOffline",
        ),
        (
            of_webhooks(("Online:\n  enable: true\n  timeout: 5", "Online:\n  enable: true\n  timeout: 5s")),
            "P085",
            "whole",
        ),
        ({**of_webhooks(), "version": "v3.8.1\n"}, "P086", "3.8.1"),
        ({"config.yaml": CONFIG, "version": "3.1.0"}, "P086", "3.1.0"),
    ],
)
def test_each_fault_is_found_and_no_other(files: Mapping[str, str | bytes], code: str, words: str) -> None:
    findings, _ = seen(files)
    assert list(findings) == [code]
    assert words in findings[code]
    assert "geheim" not in str(findings)
    assert "s3cret" not in str(findings)


# As viper 1.18.2 (3.7) and yaml.v3 (3.0) decode them; tried with both.
@pytest.mark.parametrize(
    ("text", "form", "codes"),
    [
        ('"true"', "3.7", set()),
        ('"true"', "3.0", {"P082", "P085"}),
        ('"yes"', "3.0", set()),
        ("[true]", "3.7", {"P082", "P085"}),
        ("!!bool true", "3.0", set()),
        ("2", "3.7", set()),
        ("0x0", "3.7", {"P082"}),
        ("yes", "3.7", {"P082", "P085"}),  # viper gives mapstructure the text
        ("yes", "3.0", set()),
        ("1", "3.7", set()),
        ("1", "3.0", {"P082", "P085"}),
        ("no", "3.0", {"P082"}),
        ("null", "3.7", {"P082"}),
        ("", "3.7", {"P082"}),
        ("ture", "3.7", {"P082", "P085"}),
        ("5_", "3.7", set()),
        (".5", "3.7", set()),
        ("0_", "3.7", {"P082"}),
        ('"2"', "3.7", {"P082", "P085"}),
        ('"~"', "3.7", {"P082", "P085"}),
        ('""', "3.7", {"P082"}),
    ],
)
def test_true_is_what_that_release_takes_for_it(text: str, form: str, codes: set[str]) -> None:
    file = {"webhooks.yml": WEBHOOKS} if form == "3.7" else {"config.yaml": CONFIG}
    assert set(seen({name: each.replace("true", text) for name, each in file.items()})[0]) == codes


# Without quotation marks both ignore underscores and cut off fractions.
SECONDS = ["5_", "1__0", "5.5", "5.", "1e1", "1.5E_1", "+5", "08", "0_8", "0x_10", "0O17", "0B11", "0_10"]
NO_SECONDS = ["0.5", ".5", "-_5", "-0b1", "-0", "0_"]
NO_NUMBER = ["_5", "1e400", "0x", "0b2", "5e", "1:30", "\u0665", "9" * 5000, "-0x" + "f" * 5000, "5s"]


@pytest.mark.parametrize(
    ("text", "form", "codes"),
    [
        ('"5"', "3.7", set()),
        ('"5"', "3.0", {"P085"}),
        ("0x10", "3.7", set()),
        ("010", "3.0", set()),
        ("5.0", "3.7", set()),
        ("[5]", "3.7", {"P085"}),
        ("-1", "3.0", {"P084"}),
        ("0o0", "3.7", {"P084"}),
        ("~", "3.7", {"P084"}),
        ("99999999999", "3.7", {"P085"}),
        *((text, form, set()) for text in SECONDS for form in ("3.7", "3.0")),
        *((text, form, {"P084"}) for text in NO_SECONDS for form in ("3.7", "3.0")),
        *((text, form, {"P085"}) for text in NO_NUMBER for form in ("3.7", "3.0")),
        ('"1_0"', "3.7", set()),
        ('"010"', "3.7", set()),
        ('"5_"', "3.7", {"P085"}),
        ('"-_5"', "3.7", {"P085"}),
        ('"5.5"', "3.7", {"P085"}),
        ('""', "3.7", {"P084"}),
    ],
)
def test_a_timeout_is_what_that_release_takes_for_it(text: str, form: str, codes: set[str]) -> None:
    file = {"webhooks.yml": WEBHOOKS} if form == "3.7" else {"config.yaml": CONFIG}
    assert set(seen({name: each.replace("timeout: 5", f"timeout: {text}") for name, each in file.items()})[0]) == codes


def test_no_file_whatever_is_in_it_ends_the_doctor_or_has_it_show_a_secret() -> None:
    chance = random.Random(1)
    whole = [WEBHOOKS, CONFIG, OLD, config_map(webhooks_yml=WEBHOOKS, share_yml=NEW_SHARE), ETCD]
    odd = ["_", "0", "-", ".", "e9", "\\", "'", '"', "[", "{", "}", "&a ", "*a", "<<: ", "!!int ", "!!set ", "? ", "\t"]
    odd += ["\n", "\x00", "\ufffe", "\u0665", "%", "@", "://", "]", ":99999", "- ", "---\n", "|", "=", "~"]
    for _ in range(500):
        text = chance.choice(whole)
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(text))
            text = text[:start] + chance.choice(odd) + text[start + chance.choice([0, 0, 1, 5]) :]
        names = ("webhooks.yml", "config.yaml", "docker-compose.yml", "share.yml", "discovery.yml")
        assert "geheim" not in str(seen({chance.choice(names): text}))


@pytest.mark.parametrize("text", ["", "# all taken out\n", "---\n"])
def test_a_file_without_anything_in_it_sends_nothing(text: str) -> None:
    assert set(seen({"webhooks.yml": text})[0]) == {"P073", "P082"}


def test_a_file_that_is_a_list_or_a_word_stops_openim() -> None:
    assert [list(seen({"webhooks.yml": text})[0]) for text in ("- url: x\n", "url=x\n")] == [["P071"], ["P071"]]


def test_a_callback_that_is_no_section_is_named() -> None:
    files = of_webhooks(("afterUserOnline:\n  enable: true\n  timeout: 5", "afterUserOnline: true"))
    assert set(seen(files)[0]) == {"P082", "P085"}


# what else may count


def test_everything_inside_one_config_map_is_read() -> None:
    good = config_map(webhooks_yml=WEBHOOKS, discovery_yml=ETCD, share_yml=NEW_SHARE)
    assert set(seen({"openim-config.yml": good})[0]) == {"P088"}
    findings, _ = seen({"openim-config.yml": f"{good}\n---\n{config_map(webhooks_yml=of_url('')['webhooks.yml'])}"})  # type: ignore[arg-type]
    assert "ConfigMap openim-config in openim-config.yml: webhooks.yml" in findings["P073"]
    broken = config_map(webhooks_yml="url: [")
    assert "ConfigMap openim-config" in seen({"all.yaml": broken})[0]["P071"]


def test_variables_override_what_the_file_has_and_nothing_else() -> None:
    environment = {"IMENV_WEBHOOKS_URL": "webhook://x", "IMENV_WEBHOOKS_AFTERUSERONLINE_ENABLE": "false"}
    findings, untold = seen(of_webhooks(), environment=environment)
    assert set(findings) == {"P074", "P082", "P089"}
    assert "the environment of OpenIM" in untold
    bare = {"webhooks.yml": WEBHOOKS.partition("afterUserKickOff")[0]}
    findings, _ = seen(bare, environment={"IMENV_WEBHOOKS_AFTERUSERKICKOFF_ENABLE": "true"})
    assert set(findings) == {"P083", "P085"}
    assert "IMENV_WEBHOOKS_AFTERUSERKICKOFF_ENABLE is set and counts for nothing" in findings["P085"]
    for value in ("5.5", "null"):  # viper takes a variable as text
        findings, _ = seen(of_webhooks(), environment={"IMENV_WEBHOOKS_AFTERUSERONLINE_TIMEOUT": value})
        assert set(findings) == {"P085", "P089"}
    assert seen(of_webhooks(), environment={"IMENV_WEBHOOKS_URL": ""})[0] == {}  # viper: an empty one is not set
    assert seen({"config.yaml": CONFIG}, environment=environment)[0] == {}  # 3.6 reads none


@pytest.mark.parametrize(
    "text",
    [
        "services:\n  s:\n    environment:\n      IMENV_WEBHOOKS_AFTERUSEROFFLINE_ENABLE: 'false'\n",
        "services:\n  s:\n    environment:\n      - IMENV_WEBHOOKS_AFTERUSEROFFLINE_ENABLE=false\n",
        "kind: Deployment\nspec:\n  env:\n  - name: IMENV_WEBHOOKS_AFTERUSEROFFLINE_ENABLE\n    value: 'false'\n",
    ],
    ids=["a mapping", "a list", "a deployment"],
)
def test_variables_in_compose_files_and_deployments_count(text: str) -> None:
    assert set(seen({**of_webhooks(), "docker-compose.yml": text})[0]) == {"P082", "P089"}


@pytest.mark.parametrize(
    ("files", "codes"),
    [
        ({"discovery.yml": ETCD, "share.yml": NEW_SHARE}, {"P088"}),
        ({"discovery.yml": ETCD, "share.yml": NEW_SHARE, "version": "v3.8.3-patch.16"}, set()),
        ({"discovery.yml": ETCD, "share.yml": NEW_SHARE, "version": "v3.8.4"}, {"P088"}),
        ({"discovery.yml": ETCD, "share.yml": NEW_SHARE, "version": "main"}, {"P088"}),
        ({"discovery.yml": "enable: kubernetes\n", "share.yml": NEW_SHARE}, set()),
        ({"discovery.yml": "enable: kubernetes\n", "share.yml": "secret: x\nmultiLoginPolicy: 1\n"}, {"P087"}),
        ({"discovery.yml": ETCD, "share.yml": "secret: x\n", "version": "v3.8.2"}, set()),
        ({"zookeeper.yml": "schema: openim\n", "share.yml": "secret: x\n"}, set()),  # 3.7
    ],
)
def test_what_the_files_beside_it_tell_of_the_release_is_said(files: Mapping[str, str], codes: set[str]) -> None:
    findings, untold = seen({**of_webhooks(), **files})
    assert set(findings) == codes
    assert ("OpenIM's config center" in untold) == ("P088" in codes)


def test_files_of_two_releases_side_by_side_are_both_looked_at() -> None:
    findings, _ = seen({**of_webhooks(), "config.yaml": CONFIG.replace(f'"{URL}"', "")})
    assert set(findings) == {"P070", "P073"}
    assert "webhooks.yml (read by 3.7 and later)" in findings["P070"]


def test_a_lease_with_a_release_that_repeats_nothing_is_named() -> None:
    leased = SETTINGS.model_copy(update={"online_lease_seconds": 1800})
    assert set(seen({"config.yaml": CONFIG}, leased)[0]) == {"P061"}
    assert seen(of_webhooks(), leased)[0] == {}


# where the URL leads


@pytest.mark.parametrize(
    ("reached", "code"),
    [
        (Reached("ours"), None),
        (Reached("nobody", "Connection refused"), "P075"),
        (Reached("another program", "status 200"), "P075"),
        (Reached("wrong credentials"), None),  # the password is compared anyway
        (Reached("ours", certificate=Certificate(trouble="self-signed certificate")), "P045"),
    ],
)
def test_what_answers_there_is_told(reached: Reached, code: str | None) -> None:
    assert list(seen(of_webhooks(), reached=reached)[0]) == ([code] if code else [])


@pytest.mark.parametrize(
    "reached",
    [
        Reached("silent", "nothing within 2 s"),
        Reached("nobody", "its name does not resolve here"),
        Reached("not from here"),
    ],
)
def test_what_this_machine_does_not_reach_openim_may(reached: Reached) -> None:
    findings, untold = seen(of_webhooks(), reached=reached)
    assert findings == {}
    assert "whether OpenIM reaches the receiver" in untold


def test_credentials_that_only_the_running_receiver_knows_are_asked_for() -> None:
    findings, _ = seen(of_webhooks(), Settings(), reached=Reached("wrong credentials"))
    assert set(findings) == {"P076"}


def test_http_and_https_are_told_apart(tmp_path: Any) -> None:
    secure = SETTINGS.model_copy(update={"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"})
    broken = Reached("another program", "closed")
    assert set(seen(of_webhooks(), secure, reached=broken)[0]) == {"P078"}
    assert set(seen(of_url(URL.replace("http:", "https:")), reached=broken)[0]) == {"P078"}
    assert seen(of_url(URL.replace("http:", "https:")), secure)[0] == {}
    proxied = Settings(
        **{**SETTINGS.model_dump(exclude_unset=True), "trusted_proxies": "127.0.0.1", "allowed_networks": "10.0.0.0/8"}
    )
    assert seen(of_url(URL.replace("http:", "https:")), proxied)[0] == {}


def test_the_target_is_what_go_makes_of_the_url() -> None:
    (config,) = read({"webhooks.yml": of_url("HTTPS://a%40b:c%3Ad@[::1]/x/")["webhooks.yml"].encode()}, {}).configs  # type: ignore[union-attr]
    assert openim_config.target_of(config) == Target("https", "::1", 443, "/x/", "a@b:c:d")
    assert Target("https", "::1", 443).shown == "https://[::1]:443"
