"""Chromium without a window, driven by Playwright: a visitor who counts clicks, and what the browser complains of.

A page complains of a violation of the content security policy, of an error of a script, and of what axe finds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
SERIOUS = ("serious", "critical")
LOOKS: tuple[tuple[Any, Any], ...] = (("light", DESKTOP), ("dark", PHONE), ("dark", DESKTOP), ("light", PHONE))
STYLED = ["color-contrast", "scrollable-region-focusable", "link-in-text-block"]
"""The rules of axe whose results depend on the style."""
RUN_AXE = """async ([include, options]) => {
    for (const each of document.getAnimations()) each.finish();
    const found = await axe.run({include, exclude: ['#header', '.breadcrumbs', '#nav-sidebar']}, options);
    return found.violations.map(each => ({
        id: each.id, impact: each.impact, help: each.help,
        nodes: each.nodes.slice(0, 3).map(node => node.html.slice(0, 150))
    }));
}"""
"""Leaves out what surrounds each page of Django's admin, and ends a change of colours. To wait for the end would take
frames, of which Chromium may draw none."""
SCROLLS_SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
NO_INLINE = {
    "default-src": ["'self'"],
    "object-src": ["'none'"],
    "base-uri": ["'none'"],
    "frame-ancestors": ["'none'"],
}
"""A policy for ``SECURE_CSP`` that allows no inline script and no inline style."""

STILL = "try { sessionStorage.setItem('automation-refresh-paused', 'yes') } catch { /* no page yet */ }"
"""Pauses the refreshing of pages, which would read the database beside the test."""

WATCH = """
document.addEventListener('securitypolicyviolation', event => window.axe || window.reportViolation(
    `${event.violatedDirective} refused ${event.blockedURI} ${event.sample} at ${event.sourceFile}:${event.lineNumber}`
));
"""
"""Reports violations of the policy, until axe is loaded, which itself tries to add styles."""


class StrictPolicy:
    """The middleware that sends ``NO_INLINE``, for versions of Django that have none."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        policy = "; ".join(f"{name} {' '.join(sources)}" for name, sources in NO_INLINE.items())
        response.headers["Content-Security-Policy"] = policy
        return response


class Visitor:
    """A page of the browser and the person before it. ``clicks`` counts from the address that was opened last, and
    ``status`` is that of its answer."""

    def __init__(self, page: Page, server: str) -> None:
        self.page, self.server = page, server
        self.clicks = self.status = 0
        self.complaints: list[str] = []

    def open(self, path: str) -> Visitor:
        """Open an address, as a bookmark does."""
        answer = self.page.goto(f"{self.server}{path}")
        self.clicks, self.status = 0, answer.status if answer is not None else 0
        return self

    def click(self, name: str, *, role: str = "link", within: str = "#content", exact: bool = False) -> Visitor:
        """Click the first link or button with this name, and wait for the page that follows."""
        place: Any = self.page.locator(within)
        self.click_on(place.get_by_role(role, name=name, exact=exact).first)
        return self

    def press(self, name: str, *, within: str = "#content") -> Visitor:
        return self.click(name, role="button", within=within)

    def click_on(self, target: Locator) -> None:
        target.click()
        self.page.wait_for_load_state()
        self.clicks += 1

    def run_action(self, name: str) -> Visitor:
        """Execute an action of a list on the rows that are ticked. Versions of Django name the button differently."""
        self.page.locator("#changelist select[name=action]").first.select_option(name)
        self.click_on(self.page.locator("#changelist button[name=index]").first)
        return self

    def type(self, label: str, text: str) -> Visitor:
        self.page.get_by_label(label).first.fill(text)
        return self

    @property
    def path(self) -> str:
        return self.page.url.removeprefix(self.server)

    @property
    def text(self) -> str:
        """Return the visible text of the page, without its navigation."""
        return " ".join(self.page.locator("#main").inner_text().split())

    def barriers(self, *within: str) -> Iterator[str]:
        """Yield what axe finds on the page that is serious or critical, how the page looked, and the first elements.
        Also yields that a phone would scroll sideways.

        The looks are light and dark, on a desktop and on a phone; Django's own pages get two of these. Looks differ by
        style only, so all rules run once, and those that depend on the style in each look. ``within``: selectors of the
        parts to look at, on a page of the project; default: the whole page.
        """
        from axe_playwright_python.sync_playwright import Axe

        self.page.evaluate(Axe().axe_script)
        looks = LOOKS if self.page.locator("link[href*=automation_console]").count() else LOOKS[:2]
        for number, (scheme, size) in enumerate(looks):
            self.page.emulate_media(color_scheme=scheme)
            self.page.set_viewport_size(size)
            rules: dict[str, Any] = {} if number == 0 else {"runOnly": {"type": "rule", "values": STYLED}}
            if size is PHONE and self.page.evaluate(SCROLLS_SIDEWAYS):
                yield f"The page scrolls sideways ({scheme}, {size['width']} px)."
            for each in self.page.evaluate(RUN_AXE, [within or ["body"], {**rules, "resultTypes": ["violations"]}]):
                if each["impact"] in SERIOUS:
                    yield f"{each['id']} ({scheme}, {size['width']} px): {each['help']}: {each['nodes']}"


class Chromium:
    """The browser, which lives as long as the tests, and the visitors of one server."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    @contextmanager
    def visitor(self, server: str, session: str = "", **options: Any) -> Iterator[Visitor]:
        """Yield a visitor with the key of a session, or without: nobody has logged in. What the browser complains of
        is asserted at the end."""
        is_still = options.pop("is_still", True)
        context = self.browser.new_context(viewport=options.pop("viewport", DESKTOP), **options)
        context.set_default_timeout(15_000)
        page = context.new_page()
        visitor = Visitor(page, server)
        context.expose_function("reportViolation", lambda text: visitor.complaints.append(text))
        context.add_init_script(WATCH)
        if is_still:
            context.add_init_script(STILL)
        page.on("console", lambda message: _note(visitor, message.type, message.text))
        page.on("pageerror", lambda error: visitor.complaints.append(f"script: {error}"))
        if session:
            context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": server}])
        try:
            yield visitor
            assert not visitor.complaints, visitor.complaints
        finally:
            context.close()


def _note(visitor: Visitor, kind: str, text: str) -> None:
    # An answer like 403 and 422 is no error of the page; the test asserts it. ``WATCH`` reports broken policies.
    known = text.startswith("Failed to load resource: the server responded with a status of 4")
    if kind == "error" and not known and "Content Security Policy" not in text:
        visitor.complaints.append(f"console: {text}")


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--font-render-hinting=none"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield Chromium(browser)
        finally:
            browser.close()
