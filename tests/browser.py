"""A headless browser, to test pages as a person sees them.

`Page` is for the fixture `browser` of tests/conftest.py. Screenshots go to the folder that
the variable VFNET_TF_SCREENSHOTS names, to a folder of the tests by default.
"""

import contextlib
import json
import os
import pathlib
import shutil

import pytest

SCREENSHOTS = "VFNET_TF_SCREENSHOTS"


def _find_program(*names):
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def start_browser(profile):
    """Starts Debian's chromium, or skips the test without it or selenium.

    Args:
        profile: path of a folder that the browser may fill.
    """
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = _find_program("chromium", "chromium-browser", "google-chrome")
    driver = _find_program("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(
            "chromium and chromedriver are not installed (Debian: chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root, as in containers, has no sandbox
        "--disable-dev-shm-usage",
        "--disable-gpu",
        # No requests to other hosts, not even by the browser itself.
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


class Page:
    """A page in a browser.

    Args:
        browser: of `start_browser`.
        folder: path for screenshots where the environment names none.
    """

    def __init__(self, browser, folder):
        self.browser = browser
        self.folder = pathlib.Path(os.environ.get(SCREENSHOTS, folder))

    def open(self, url, width=1280, height=860):
        self.browser.get("about:blank")
        self.browser.get_log("performance")  # drops the log of the previous page
        self.browser.get_log("browser")
        self.browser.set_window_size(width, height)
        # The page itself, without the window's frame, gets this size.
        inner = self.browser.execute_script("return [innerWidth, innerHeight]")
        self.browser.set_window_size(2 * width - inner[0], 2 * height - inner[1])
        self.browser.get(url)

    def open_file(self, path, dark=False, **size):
        """Opens a file of this machine, in light or dark colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [scheme]}
        )
        self.open(pathlib.Path(path).resolve().as_uri(), **size)

    def wait(self, script, *arguments, seconds=30):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, seconds, poll_frequency=0.05).until(
            lambda browser: browser.execute_script(script, *arguments)
        )

    def texts(self, selector):
        """The visible texts of all elements that a CSS selector finds."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((one) => one.innerText)",
            selector,
        )

    def images(self):
        """[alternative text, width of the file in pixels] of all images."""
        return self.browser.execute_script(
            "return [...document.images].map((one) => [one.alt, one.naturalWidth])"
        )

    def requests(self):
        """Addresses requested since the page was opened, without `data:`."""
        messages = [
            json.loads(entry["message"])["message"]
            for entry in self.browser.get_log("performance")
        ]
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]

    def save(self, name, whole=False):
        """Writes a screenshot of the window, or of the whole page.

        Returns:
            The path.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.png"
        if whole:
            size = self.browser.get_window_size()
            height = self.browser.execute_script(
                "return document.documentElement.scrollHeight"
            )
            self.browser.set_window_size(size["width"], height + 200)
            self.browser.save_screenshot(str(path))
            self.browser.set_window_size(size["width"], size["height"])
        else:
            self.browser.save_screenshot(str(path))
        return path

    def check_clean(self):
        """Checks that no request left the page, none failed, and nothing overflows."""
        loaded = self.browser.execute_script(
            "return performance.getEntriesByType('resource').map((one) => one.name)"
        )
        own = self.browser.current_url
        # Images from the browser's memory have the page's address.
        strange = [one for one in loaded if own not in one and one[:5] != "data:"]
        assert not strange, strange
        errors = [
            entry
            for entry in self.browser.get_log("browser")
            if entry["level"] == "SEVERE"
        ]
        assert not errors, errors
        assert self.browser.execute_script(
            "return document.documentElement.scrollWidth <= innerWidth"
        )
