"""Real Chromium, watched: no request leaves the server, nothing goes wrong on the console."""

import contextlib
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium():
    """Where Chromium is, None where it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Watch:
    """What a page asked for and complained about."""

    def __init__(self, page, origin):
        self.origin = origin
        self.asked, self.said = [], []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda line: self.said.append(f"{line.type}: {line.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))

    def check(self, *allowed):
        """Only the server was asked, and the console shows nothing but what is `allowed`."""
        assert self.asked, "no request at all"
        away = [url for url in self.asked if not url.startswith((f"{self.origin}/", "data:"))]
        assert away == []
        assert [line for line in self.said if not any(text in line for text in allowed)] == []


@contextlib.contextmanager
def opened(browser, origin, *, allowed=(), width=1280, height=900, theme="light", **context):
    """A page of its own context, checked at the end."""
    options = {"viewport": {"width": width, "height": height}, "color_scheme": theme} | context
    inside = browser.new_context(**options)
    try:
        page = inside.new_page()
        page.set_default_timeout(15_000)
        watch = Watch(page, origin)
        yield page
        watch.check(*allowed)
    finally:
        inside.close()


def go(page, origin, where):
    """Open one of the pages and wait until it shows what it read."""
    page.goto(f"{origin}/#/{where}")
    page.locator("#view h1").wait_for()
    page.locator('#view > [aria-busy="true"]').wait_for(state="detached")
    page.wait_for_load_state("networkidle")
