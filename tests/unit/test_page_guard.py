"""Who may see the page, and who may act on it."""

import base64
from dataclasses import replace

import pytest

from receiver.page.guard import Guard, PageRequest

HERE = PageRequest(local="127.0.0.1", host="localhost:10016")
BASIC = "Basic " + base64.b64encode(b"admin:geheim").decode()
SIGNED = PageRequest(local="192.0.2.1", host="presence.example:10016", authorization=BASIC)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:10016", "127.0.0.1:10016", "127.9.9.9", "[::1]:10016", "[::1]"]
)
def test_without_a_password_this_machine_sees_it(host: str) -> None:
    assert Guard("").check(replace(HERE, host=host)) is None


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:10016", "[::1", "0.0.0.0", "a@b"],
)
def test_another_name_for_this_machine_gets_nothing(host: str | None) -> None:
    """Another site can make its own name lead here (DNS rebinding)."""
    forbidden = Guard("").check(replace(HERE, host=host))
    assert forbidden and forbidden.status == 403


@pytest.mark.parametrize("local", ["192.0.2.1", "172.17.0.2", "2001:db8::1", ""])
def test_without_a_password_no_other_machine_sees_it(local: str) -> None:
    forbidden = Guard("").check(replace(HERE, local=local))
    assert forbidden and forbidden.status == 403 and "PRESENCE_ADMIN_AUTH" in forbidden.text


@pytest.mark.parametrize("authorization", [None, "", "Basic", "Basic !", "Bearer x", BASIC[:-4], BASIC.swapcase()])
def test_with_a_password_nobody_sees_it_without(authorization: str | None) -> None:
    guard = Guard("admin:geheim")
    for asked in (SIGNED, replace(SIGNED, local="127.0.0.1", host="localhost")):
        forbidden = guard.check(replace(asked, authorization=authorization))
        assert forbidden and forbidden.status == 401


def test_with_the_password_every_machine_sees_it() -> None:
    assert Guard("admin:geheim").check(SIGNED) is None


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "https://presence.example", "http://presence.example:1", "file://"]
)
def test_another_sites_page_gets_nothing(origin: str) -> None:
    forbidden = Guard("admin:geheim").check(replace(SIGNED, origin=origin))
    assert forbidden and forbidden.status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_embeds_gets_nothing(site: str) -> None:
    assert Guard("").check(replace(HERE, fetch_site=site))


@pytest.mark.parametrize("site", [None, "none", "same-origin"])
def test_the_pages_own_requests_are_answered(site: str | None) -> None:
    own = replace(HERE, fetch_site=site, origin="http://LOCALHOST:10016")
    assert Guard("").check(own) is None


def test_to_act_needs_the_password_and_the_pages_own_origin() -> None:
    guard = Guard("admin:geheim")
    own = replace(SIGNED, origin="https://presence.example:10016")
    assert guard.check(own, acts=True) is None
    for asked, status in ((SIGNED, 403), (replace(own, authorization=None), 401), (replace(own, origin="null"), 403)):
        forbidden = guard.check(asked, acts=True)
        assert forbidden and forbidden.status == status


def test_without_a_password_set_nobody_acts() -> None:
    forbidden = Guard("").check(replace(HERE, origin="http://localhost:10016"), acts=True)
    assert forbidden and forbidden.status == 403 and "PRESENCE_ADMIN_AUTH" in forbidden.text
