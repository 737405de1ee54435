"""Who may send: networks, proxies, credentials; and settings that protect only by halves."""

from base64 import b64encode
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.callback import Refused, check_path
from receiver.http import access
from receiver.http.refusals import Refusals
from receiver.lately import Lately
from shared.errors import SettingsError
from shared.settings import Settings, load

PROXIES = [ip_network("10.0.0.0/24"), ip_network("2001:db8::/32")]


def basic(credentials: str) -> str:
    return "Basic " + b64encode(credentials.encode()).decode()


def status(environment: dict[str, str], peer: str | None, forwarded: list[str], authorization: str | None) -> int:
    rules = access.make(load({f"PRESENCE_{name}": value for name, value in environment.items()}))
    assert rules
    try:
        rules.check(peer or "", forwarded, authorization)
    except Refused as refusal:
        return refusal.refusal.status
    return 200


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),  # what a stranger claims does not count
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.7, 198.51.100.1"], "198.51.100.1"),  # the left one is the client's own
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2 ,\t10.0.0.3"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2"], "198.51.100.1"),  # one line from each proxy
        ("10.0.0.1", ["10.0.0.9,10.0.0.2"], "10.0.0.9"),
        ("10.0.0.1", ["rubbish, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, rubbish"], None),
        ("10.0.0.1", ["198.51.100.1, rubbish, 10.0.0.2"], None),
        ("10.0.0.1", ["198.51.100.1,"], None),
        ("10.0.0.1", [""], None),
        ("10.0.0.1", ["unknown"], None),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),  # Azure's gateways add the port
        ("10.0.0.1", ["203.0.113.7:51008, 10.0.0.2:443"], "203.0.113.7"),
        ("10.0.0.1", ["[2001:db9::7]:443"], "2001:db9::7"),
        ("10.0.0.1", ["[2001:db9::7]"], "2001:db9::7"),
        ("10.0.0.1", ["[2001:db9::7]:443, [2001:db8::7]:443"], "2001:db9::7"),
        ("10.0.0.1", ["[::ffff:198.51.100.1]:1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1:"], None),
        ("10.0.0.1", ["198.51.100.1:x"], None),
        ("10.0.0.1", ["[198.51.100.1"], None),
        ("10.0.0.1", ["[]:1"], None),
        ("10.0.0.1", ["198.51.100.01"], None),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("2001:db8::1", ["2001:db9::7"], "2001:db9::7"),
        ("", ["198.51.100.1"], None),
        (None, [], None),
    ],
)
def test_the_client_is_the_last_that_no_trusted_proxy_stands_for(
    peer: str | None, forwarded: list[str], client: str | None
) -> None:
    found, _ = access.client_of(peer, forwarded, PROXIES)
    assert (str(found) if found else None) == client


def test_the_address_that_was_judged_is_named_and_returned() -> None:
    networks = {"PRESENCE_ALLOWED_NETWORKS": "203.0.113.7", "PRESENCE_TRUSTED_PROXIES": "10.0.0.1"}
    rules = access.make(load(networks))
    assert rules
    assert rules.check("10.0.0.1", ["203.0.113.7:51008"], None) == "203.0.113.7"
    assert rules.check("203.0.113.7", ["198.51.100.1"], None) == "203.0.113.7"
    for entry, says in (
        ("198.51.100.1:9", "PRESENCE_ALLOWED_NETWORKS: 198.51.100.1 is in none of them"),
        ("unknown\n", "X-Forwarded-For: 'unknown\\n' is not an address"),
    ):
        with pytest.raises(Refused) as refused:
            rules.check("10.0.0.1", [entry], None)
        assert refused.value.refusal.detail == says


@pytest.mark.parametrize("environment", [{"ALLOWED_NETWORKS": "192.0.2.7"}, {"BASIC_AUTH": "user:password"}])
def test_a_refusal_keeps_nothing_of_the_refusals_before_it(environment: dict[str, str]) -> None:
    rules = access.make(load({f"PRESENCE_{name}": value for name, value in environment.items()}))
    assert rules

    def depth() -> int:
        with pytest.raises(Refused) as refused:
            rules.check("198.51.100.1", [], None)
        return len(refused.traceback)

    assert depth() == depth()  # each frame of a traceback holds its request


@given(st.lists(st.text(max_size=30)), st.text(max_size=30))
def test_no_header_lets_a_stranger_in(forwarded: list[str], peer: str) -> None:
    environment = {"ALLOWED_NETWORKS": "203.0.113.7", "TRUSTED_PROXIES": "203.0.113.0/29"}
    assert status(environment, "198.51.100.1", forwarded, None) == 403
    through_a_proxy = [*forwarded, "198.51.100.1"]
    assert status(environment, "203.0.113.1", through_a_proxy, None) == 403


@pytest.mark.parametrize(
    ("networks", "peer", "expected"),
    [
        ("10.0.0.0/8", "10.255.0.1", 200),
        ("10.0.0.0/8", "11.0.0.1", 403),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 200),
        ("::ffff:10.0.0.0/104", "10.0.0.1", 200),
        ("10.0.0.0/8", "::10.0.0.1", 403),
        ("192.0.2.7 , 2001:db8::/32", "192.0.2.7", 200),
        ("192.0.2.7,2001:db8::/32", "2001:db8::1", 200),
        ("192.0.2.7", "192.0.2.8", 403),
        ("0.0.0.0/0", "2001:db8::1", 403),
        ("fe80::/10", "fe80::1%eth0", 200),
        ("10.0.0.0/8", None, 403),
        ("10.0.0.0/8", "nonsense", 403),
    ],
)
def test_only_allowed_networks_are_let_in(networks: str, peer: str | None, expected: int) -> None:
    assert status({"ALLOWED_NETWORKS": networks}, peer, [], None) == expected


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (basic("openim:ge:heim ä"), 200),
        ("bAsIc  " + basic("openim:ge:heim ä")[6:] + " ", 200),
        (basic("openim:ge:heim a"), 401),
        (basic("openim:"), 401),
        (basic(":"), 401),
        (basic(""), 401),
        ("Basic", 401),
        ("Basic ?", 401),
        ("Basic \udcff", 401),
        ("Bearer " + basic("openim:ge:heim ä")[6:], 401),
        (basic("openim:ge:heim ä")[6:], 401),
        ("", 401),
        (None, 401),
    ],
)
def test_only_the_credentials_open(authorization: str | None, expected: int) -> None:
    assert status({"BASIC_AUTH": "openim:ge:heim ä"}, "192.0.2.1", [], authorization) == expected


def test_the_network_is_asked_before_the_credentials() -> None:
    both = {"BASIC_AUTH": "a:b", "ALLOWED_NETWORKS": "10.0.0.0/8"}
    assert status(both, "192.0.2.1", [], basic("a:b")) == 403
    assert status(both, "10.0.0.1", [], None) == 401
    assert status(both, "10.0.0.1", [], basic("a:b")) == 200


@pytest.mark.parametrize("target", ["/s3cret", "/s3cret/", "/s3cret?a=b", "/s3cret/x", "http://host/s3cret/x"])
def test_what_lies_below_the_prefix_is_taken(target: str) -> None:
    check_path(target, "/s3cret")


@pytest.mark.parametrize("target", ["/", "", "/s3cre", "/s3cretx", "/S3CRET", "/x/s3cret", "/?/s3cret", "/s3cre\udcff"])
def test_what_does_not_is_not(target: str) -> None:
    with pytest.raises(Refused):
        check_path(target, "/s3cret")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BASIC_AUTH", "openim", "user:password"),
        ("BASIC_AUTH", "openim:", "user:password"),
        ("BASIC_AUTH", ":geheim", "user:password"),
        ("ALLOWED_NETWORKS", "10.1.2.3/8", "the network is 10.0.0.0/8"),
        ("ALLOWED_NETWORKS", "10.0.0.0/33", "is not a network"),
        ("ALLOWED_NETWORKS", "10.0.0.0/8,,", "an empty entry"),
        ("ALLOWED_NETWORKS", "localhost", "localhost is not a network"),
        ("ALLOWED_NETWORKS", " ", "a blank"),
        ("ALLOWED_NETWORKS", ", ,", "an empty entry"),
        ("TRUSTED_PROXIES", "2001:db8::1/32", "the network is 2001:db8::/32"),
        ("TRUSTED_PROXIES", "10.0.0.1", "PRESENCE_ALLOWED_NETWORKS"),
        ("TLS_CERT", "cert.pem", "PRESENCE_TLS_KEY"),
        ("TLS_KEY", "key.pem", "PRESENCE_TLS_CERT"),
        ("FORWARD_ON_FAILURE", "continue", "PRESENCE_FORWARD_URL"),
        ("FORWARD_ON_FAILURE", "stop", "'error' or 'continue'"),
    ],
)
def test_half_a_lock_stops_the_start(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=f"^PRESENCE_{name}: .*{says}"):
        load({f"PRESENCE_{name}": value})


@pytest.mark.parametrize(
    ("environment", "is_open"),
    [
        ({}, True),
        ({"HOST": "192.0.2.1"}, True),
        ({"HOST": "::"}, True),
        ({"CALLBACK_PATH": "/"}, True),
        ({"HOST": "127.0.0.1"}, False),
        ({"HOST": "::1"}, False),
        ({"HOST": "localhost"}, False),
        ({"CALLBACK_PATH": "/s3cret"}, False),
        ({"BASIC_AUTH": "a:b"}, False),
        ({"ALLOWED_NETWORKS": "10.0.0.0/8"}, False),
    ],
)
def test_a_receiver_without_any_lock_is_told_from_others(environment: dict[str, str], is_open: bool) -> None:
    assert access.is_open(load({f"PRESENCE_{name}": value for name, value in environment.items()})) == is_open


def test_secrets_are_not_shown() -> None:
    environment = {"BASIC_AUTH": "u:geheim", "CALLBACK_PATH": "/geheim", "REDIS_URL": "redis://:geheim@h:1/0"}
    settings = load({f"PRESENCE_{name}": value for name, value in environment.items()})
    assert "geheim" not in repr(settings) + str(settings)
    assert Settings().basic_auth == ""


def test_a_refusals_line_has_no_secret_path() -> None:
    shown = Refusals("/geheim", Lately()).shown
    assert "geheim" not in shown("/geheim/callbackX?a=/geheim") + shown("/geheimnis") + shown("/geheiM/x")
    assert shown("/geheim/callbackX").endswith("/callbackX")
