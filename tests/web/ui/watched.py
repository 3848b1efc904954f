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
        page.set_default_timeout(30_000)
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


ALL_OPEN = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"

SHAPE = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const ids = all('[id]').map((e) => e.id);
  const told = (e) => e.getAttribute('role') === 'img' && e.getAttribute('aria-label');
  return {
    headings: all('h1').filter((e) => e.checkVisibility()).length,
    twice: ids.filter((id, i) => ids.indexOf(id) !== i),
    wide: document.documentElement.scrollWidth - window.innerWidth,
    pictures: all('svg').filter((e) => !e.hasAttribute('aria-hidden') && !told(e)).length,
    rows: all('table').filter((t) => !t.caption || !t.querySelector('th[scope]')).length,
  };
}"""
"""What a page is made of: visible first headings, ids used twice, pixels beyond the window,
pictures and tables that say nothing of themselves."""

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = rgba(getComputedStyle(e).backgroundColor);
      if (found[3] === 255) return found;
    }
    return rgba('white');
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const told = [];
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim();
    const e = texts.currentNode.parentElement;
    if (!text || !e.checkVisibility() || e.closest('[disabled], .unseen, option')) continue;
    const style = getComputedStyle(e);
    const ink = light(rgba(e.namespaceURI.endsWith('svg') ? style.fill : style.color));
    const paper = light(behind(e));
    const [low, high] = ink < paper ? [ink, paper] : [paper, ink];
    told.push([(high + 0.05) / (low + 0.05), text.slice(0, 40)]);
  }
  return told.sort((x, y) => x[0] - y[0]);
}"""
"""[contrast, text] of every visible text, the worst first (WCAG 2.2, 1.4.3)."""

SEARCHED = """async () => {
  const field = document.querySelector('input[type=search]');
  const began = performance.now();
  field.value = 'stack-999';
  field.dispatchEvent(new Event('input'));
  while (document.querySelectorAll('.stack-row').length !== 1) {
    await new Promise(requestAnimationFrame);
  }
  return performance.now() - began;
}"""
"""Milliseconds from typing a name to seeing it alone."""
