"""Opens every page of the built site in a headless Chromium and reports its faults.

    python docs/tools/check_site.py site                       # exits with 1 if it finds any
    python docs/tools/check_site.py site --screenshots shots   # and writes a picture of every page

Each page is opened at two widths, in light and in dark. Nothing may scroll sideways but
tables, code and equations in their own frames. Every picture has to load, the console has
to stay silent, and no page may need another server.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import itertools
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Response

WIDTHS = (1280, 390)
SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
PLAY = "play/"
SEARCHES = ("imbalance", "amp", "temperature")
QUESTIONS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "chrome-headless-shell",
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address under which this machine, and no other, can read the folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Site:
    """The site in one window. `complaints` and `requests` are those of the page that it shows."""

    def __init__(self, browser: Browser, address: str, width: int, scheme: Literal["light", "dark"]) -> None:
        phone = width < 600
        self.page = browser.new_page(
            viewport={"width": width, "height": 844}, color_scheme=scheme, is_mobile=phone, has_touch=phone
        )
        self.address, self.complaints, self.requests = address, list[str](), list[str]()
        self.page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", self._answer)

    def _answer(self, response: Response) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def open(self, name: str) -> None:
        self.complaints.clear()
        self.requests.clear()
        self.page.goto(f"{self.address}/{name}")

    def ask(self, question: str, argument: object = None) -> Any:
        """Calls a function of check_site.js in the page."""
        return self.page.evaluate(f"argument => {{ {QUESTIONS}\nreturn {question}(argument); }}", argument)


def pages_of(folder: Path) -> list[str]:
    found = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.html"))]
    return [name.removesuffix("index.html") for name in found if name != "404.html"]


def check_page(site: Site, name: str, width: int) -> list[str]:
    site.open(name)
    found = list(site.ask("tooWide", width))
    found += [f"a picture does not load: {url}" for url in site.ask("missingPictures")]
    found += [f"lists a private name: {entry}" for entry in site.ask("privateEntries")]
    if site.ask("contrast") < 4.5:
        found.append("the text hardly differs from its background")
    if not site.ask("neighbours"):
        found.append("has neither a previous nor a next page")
    if not site.ask("repository").startswith("https://"):
        found.append("has no link to the repository")
    local = (site.address, "data:", "blob:")
    found += [f"asks another server: {url}" for url in site.requests if not url.startswith(local)]
    return found + site.complaints


def check_theme(site: Site) -> list[str]:
    """What every page shares: the search and the switch."""
    found = []
    for word in SEARCHES:
        site.open("")
        if not site.ask("searchHits", word):
            found.append(f"the search finds nothing for {word!r}")
    site.open("")
    if len(set(site.ask("schemes"))) < 2:
        found.append("the switch does not change the theme")
    return found


def check_play(site: Site) -> list[str]:
    """The interactive page, as a phone shows it."""
    site.open(PLAY)
    dead = [f"/{PLAY}: no effect of {control}" for control in site.ask("deadControls")]
    return dead + [f"/{PLAY}: {complaint}" for complaint in site.complaints]


def check(browser: Browser, address: str, pages: list[str], screenshots: Path | None) -> list[str]:
    faults = []
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        site = Site(browser, address, width, scheme)
        for name in pages:
            found = check_page(site, name, width)
            faults += [f"/{name}, {width} pixels, {scheme}: {what}" for what in found]
            if screenshots:
                file = name.strip("/").replace("/", "-") or "home"
                site.page.screenshot(path=screenshots / f"{file}-{width}-{scheme}.png", full_page=True)
    faults += check_theme(Site(browser, address, 1280, "light"))
    return faults + check_play(Site(browser, address, 390, "light"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder that mkdocs has built")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the pages")
    options = parser.parse_args()
    pages = pages_of(options.site)
    if not pages:
        parser.error(f"{options.site} has no pages; build them first: mkdocs build")
    program = next(filter(None, map(shutil.which, filter(None, (os.environ.get("BROWSER"), *BROWSERS)))), None)
    if program is None:
        parser.error(
            "the pages are measured in Chromium or Chrome, and neither is installed. Install one (Debian and Ubuntu: "
            "apt-get install chromium), or set BROWSER to the program"
        )
    from playwright.sync_api import sync_playwright  # late: the message above needs no package

    with serve(options.site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        faults = check(browser, address, pages, options.screenshots)
        browser.close()
    print("\n".join([*faults, f"{len(pages)} pages, {len(faults)} faults"]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
