"""Headless Chromium, for tests of the page. Debian has it as `chromium` and `chromium-driver`."""

import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (CHROMIUM and DRIVER):
        reason = "needs a browser: apt-get install chromium chromium-driver"
        for item in items:
            if "browser" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(scope="session")
def chrome() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chrome: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """With one tab, in which nothing has been opened."""
    chrome.get_log("browser")  # type: ignore[no-untyped-call]  # what others left there
    yield chrome
    used = chrome.window_handles
    chrome.switch_to.new_window("tab")
    fresh = chrome.current_window_handle
    for handle in used:
        chrome.switch_to.window(handle)
        chrome.close()
    chrome.switch_to.window(fresh)
