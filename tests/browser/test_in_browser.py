"""The page as people see it, in a real browser."""

import http.client
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from failed import fail
from redis import Redis
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support import Process, Receiver, Server, Worker, free_port, on_one_server, wait_until

from shared.cli.openim import request
from shared.doctor.codes import CODES
from shared.queue import open_queue
from shared.settings import Settings

pytestmark = [on_one_server, pytest.mark.xdist_group("browser")]
Keep = Callable[[Process], Process]
ODD_USERS = ["a/b", "..", "%2F", "a?b#c", "__proto__", "<img src=x onerror=alert(1)>", "\u202egnp.exe", "--all", "用户"]


@pytest.fixture
def system(server: Server, tmp_path: Path, keep: Keep) -> Receiver:
    """A receiver and a worker."""
    receiver = Receiver(tmp_path, server.url, admin_auth="admin:geheim")
    keep(receiver)
    keep(Worker(tmp_path, server.url))
    return receiver


def url(port: int) -> str:
    return f"http://admin:geheim@127.0.0.1:{port}/"


def text(browser: Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).get_property("textContent")  # type: ignore[return-value]


def opened(browser: Chrome, system: Receiver) -> None:
    browser.get(url(system.admin_port))
    wait_until(lambda: text(browser, "health") == "healthy", what="the page to say that all is well")


def send(system: Receiver, user: str) -> None:
    callback = request("v3.8", "", "Online", user, time.time_ns() // 1_000_000, operation_id="op")
    assert system.post(callback.url, callback.headers, callback.body)[0] == 200


def look_up(browser: Chrome, user: str) -> str:
    browser.execute_script("document.getElementById('user').value = arguments[0]", user)  # drivers type no emoji
    browser.find_element(By.CSS_SELECTOR, "#search button").click()
    return str(wait_until(lambda: (said := text(browser, "answer")) != "Looking…" and said))


def click(browser: Chrome, selector: str) -> None:
    """The page may draw a button anew between the moment when it is found and the click."""

    def clicked() -> bool:
        with suppress(StaleElementReferenceException):
            browser.find_element(By.CSS_SELECTOR, selector).click()
            return True
        return False

    wait_until(clicked, what=f"{selector} to be clicked")


def errors(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]


def test_it_loads_from_one_host_and_without_an_error(browser: Chrome, system: Receiver) -> None:
    opened(browser, system)
    wait_until(lambda: "Redis for presence" in text(browser, "programs"))
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert loaded
    assert {urlsplit(each).hostname for each in loaded} <= {"127.0.0.1", None}, loaded  # None: in the page itself
    assert errors(browser) == []


def test_figures_move_under_load(browser: Chrome, system: Receiver) -> None:
    opened(browser, system)
    for number in range(50):
        send(system, f"user{number}")
    wait_until(lambda: "Presence50users online" in text(browser, "flow"))
    wait_until(lambda: "user49" in text(browser, "changes"))
    wait_until(lambda: "callbackAfterUserOnlineCommand127.0.0.1" in text(browser, "callbacks"))
    label = browser.execute_script("return document.querySelector('#charts svg').ariaLabel")
    assert re.sub("[0-9.]+", "N", label) == "users online: N now, N at most"


def test_a_frozen_redis_shows_within_three_seconds(browser: Chrome, system: Receiver, server: Server) -> None:
    opened(browser, system)
    server.signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    wait_until(lambda: "not healthy" in text(browser, "health"))
    took = time.monotonic() - frozen_at
    assert "does not answer" in text(browser, "problems")
    server.signal(signal.SIGCONT)
    wait_until(lambda: text(browser, "health") == "healthy")
    assert took < 3.5, took  # and half a second for a busy machine


def test_users_of_any_name_are_found_and_shown_as_text(browser: Chrome, system: Receiver) -> None:
    opened(browser, system)
    for user in ODD_USERS:
        send(system, user)
        shown = user.replace("\u202e", "\\u{202e}")
        wait_until(lambda shown=shown: shown in text(browser, "changes"))  # type: ignore[misc]
        said = wait_until(lambda user=user: "online" in (found := look_up(browser, user)) and found)  # type: ignore[misc]
        assert user.removeprefix("\u202e") in said and "\u202e" not in said
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert errors(browser) == []


def test_it_works_without_a_mouse(browser: Chrome, system: Receiver) -> None:
    opened(browser, system)
    send(system, "alice")
    wait_until(lambda: "alice" in text(browser, "changes"))
    browser.switch_to.active_element.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys("alice", Keys.ENTER)
    wait_until(lambda: text(browser, "answer").startswith("alice "))
    for _ in range(3):  # past the button and the facts, to the newest change
        browser.switch_to.active_element.send_keys(Keys.TAB)
    focused = browser.switch_to.active_element.get_property("textContent")
    time.sleep(2.5)  # two readings
    assert browser.switch_to.active_element.get_property("textContent") == focused == "alice"


@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_a_phone_and_a_desk(browser: Chrome, system: Receiver, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    send(system, "a-user-with-a-long-name-" + "x" * 200)
    opened(browser, system)
    wait_until(lambda: "xxx" in text(browser, "changes"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_failed_batches_are_requeued_and_dropped(browser: Chrome, system: Receiver, redis: Redis) -> None:
    queue = open_queue(redis, Settings())
    fail(queue, redis, "one")
    browser.get(url(system.admin_port))
    wait_until(lambda: "WRONGTYPE" in text(browser, "failed"))
    redis.delete("presence:bad")  # mended
    click(browser, "#failed button[aria-label^=Requeue]")
    wait_until(lambda: text(browser, "failed-note") == "None.")
    wait_until(lambda: redis.hget("presence:bad", "status") == b"offline")
    fail(queue, redis, "two")
    wait_until(lambda: "WRONGTYPE" in text(browser, "failed"))
    click(browser, "#failed button[aria-label^=Drop]")
    browser.switch_to.alert.accept()
    wait_until(lambda: text(browser, "failed-note") == "None.")
    assert redis.zcard("rq:failed:presence") == 0


def test_without_a_password_nobody_acts(
    browser: Chrome, server: Server, redis: Redis, tmp_path: Path, keep: Keep
) -> None:
    receiver = Receiver(tmp_path, server.url)
    keep(receiver)
    fail(open_queue(redis, Settings()), redis)
    browser.get(f"http://localhost:{receiver.admin_port}/")
    wait_until(lambda: "WRONGTYPE" in text(browser, "failed"))
    assert not browser.find_elements(By.CSS_SELECTOR, "#failed button[aria-label]")
    assert "PRESENCE_ADMIN_AUTH" in text(browser, "failed-note")


def test_the_eighth_tab_works_as_the_first(browser: Chrome, system: Receiver) -> None:
    """A browser opens at most six connections to a host."""
    for _ in range(8):
        browser.switch_to.new_window("window")
        opened(browser, system)
    for handle in browser.window_handles[1:]:
        browser.switch_to.window(handle)
        wait_until(lambda: text(browser, "health") == "healthy" and not text(browser, "connection"))


def test_it_says_that_the_receiver_has_gone_and_comes_back(browser: Chrome, system: Receiver) -> None:
    opened(browser, system)
    began = time.monotonic()
    assert system.stop() == 0
    assert time.monotonic() - began < 5  # it does not wait for those who watch
    wait_until(lambda: "No connection to the receiver since" in text(browser, "connection"))
    system.start()
    wait_until(lambda: not text(browser, "connection") and text(browser, "health") == "healthy")


def test_it_comes_back_after_a_sleep(browser: Chrome, system: Receiver) -> None:
    """When a laptop's lid is closed, neither the browser nor its timers run."""
    opened(browser, system)
    asleep = descendants(browser.service.process.pid)
    try:
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        send(system, "alice")
        time.sleep(5)
    finally:
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "alice" in text(browser, "changes"))
    wait_until(lambda: not text(browser, "connection"))


def descendants(pid: int) -> set[int]:
    """The ids of all processes that a process has started, directly or not."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_a_proxy_that_keeps_the_stream_to_itself_hides_nothing(browser: Chrome, system: Receiver, redis: Redis) -> None:
    with Buffering(system.admin_port) as proxy:
        browser.get(url(proxy))
        wait_until(lambda: text(browser, "health") == "healthy")
        redis_seen = text(browser, "flow")
        send(system, "alice")
        wait_until(lambda: "Presence1users online" in text(browser, "flow"))
        assert redis_seen != text(browser, "flow")
        wait_until(lambda: "alice" in text(browser, "changes"))
        fail(open_queue(redis, Settings()), redis)
        wait_until(lambda: "failed" in text(browser, "problems"))
        assert CODES["P054"].mend in text(browser, "problems")


def test_it_asks_for_nothing_while_nobody_sees_it(browser: Chrome, system: Receiver) -> None:
    opened(browser, system)
    first = browser.current_window_handle
    hidden = "Object.defineProperty(document, 'hidden', {get: () => arguments[0], configurable: true});"
    browser.execute_script(hidden + "document.dispatchEvent(new Event('visibilitychange'))", True)
    send(system, "alice")
    time.sleep(5)
    assert "alice" not in text(browser, "changes")
    assert browser.current_window_handle == first
    browser.execute_script(hidden + "document.dispatchEvent(new Event('visibilitychange'))", False)
    wait_until(lambda: "alice" in text(browser, "changes"))


class Buffering:
    """A proxy that passes an answer on only when it is complete, so never a stream."""

    def __init__(self, upstream: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=30)
                connection.request("GET", self.path, headers={**self.headers, "Host": f"127.0.0.1:{port}"})
                answer = connection.getresponse()
                try:
                    body = answer.read()
                except (OSError, http.client.HTTPException):  # a stream that lasts
                    return
                self.send_response(answer.status)
                for name in ("Content-Type", "WWW-Authenticate"):
                    if value := answer.headers.get(name):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        port = self._port = free_port()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> int:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self._port

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.socket.close()
