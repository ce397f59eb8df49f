"""Opens every page of the built site in a headless Chromium and reports its faults.

    python docs/tools/check_site.py site                       # exits with 1 if it finds any
    python docs/tools/check_site.py site --screenshots shots   # and writes a picture of every page

Each page is opened at two widths, in light and in dark. Nothing may scroll sideways but
tables, code and equations in their own frames. Every picture has to load, the console has
to stay silent, and no page may need another server.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from browser import Browser, NoBrowserError, serve

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
PLAY = "play/"
SEARCHES = ("imbalance", "amp", "temperature")
QUESTIONS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def pages_of(site: Path) -> list[str]:
    found = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html"))]
    return [name.removesuffix("index.html") for name in found if name != "404.html"]


def ask(page: Browser, question: str, *arguments: object) -> object:
    """Call a function of check_site.js in the page."""
    values = ", ".join(map(json.dumps, arguments))
    return page.run(f"(() => {{ {QUESTIONS}\nreturn {question}({values}); }})()")


def check_page(page: Browser, address: str, name: str, width: int) -> list[str]:
    page.open(f"{address}/{name}")
    found = list(ask(page, "tooWide", width))
    found += [f"a picture does not load: {url}" for url in ask(page, "missingPictures")]
    found += [f"lists a private name: {entry}" for entry in ask(page, "privateEntries")]
    if ask(page, "contrast") < 4.5:
        found.append("the text hardly differs from its background")
    if not ask(page, "neighbours"):
        found.append("has neither a previous nor a next page")
    if not ask(page, "repository").startswith("https://"):
        found.append("has no link to the repository")
    local = (address, "data:", "blob:")
    found += [f"asks another server: {u}" for u in page.requests() if not u.startswith(local)]
    return found + page.complaints()


def check_theme(page: Browser, address: str) -> list[str]:
    """What every page shares: the search and the switch."""
    page.shape(1280, 844, "light")
    found = []
    for word in SEARCHES:
        page.open(f"{address}/")
        if not ask(page, "searchHits", word):
            found.append(f"the search finds nothing for {word!r}")
    page.open(f"{address}/")
    if len(set(ask(page, "schemes"))) < 2:
        found.append("the switch does not change the theme")
    return found


def check_play(page: Browser, address: str) -> list[str]:
    """The interactive page, as a phone shows it."""
    page.shape(390, 844, "light")
    page.open(f"{address}/{PLAY}")
    dead = [f"/{PLAY}: no effect of {control}" for control in ask(page, "deadControls")]
    return dead + [f"/{PLAY}: {complaint}" for complaint in page.complaints()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder that mkdocs has built")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the pages")
    options = parser.parse_args()
    pages = pages_of(options.site)
    if not pages:
        parser.error(f"{options.site} has no pages; build them first: mkdocs build")
    try:
        browser = Browser()
    except NoBrowserError as error:
        parser.error(str(error))
    faults = []
    with serve(options.site) as address, browser as page:
        for width in WIDTHS:
            for scheme in SCHEMES:
                page.shape(width, 844, scheme)
                for name in pages:
                    found = check_page(page, address, name, width)
                    faults += [f"/{name}, {width} pixels, {scheme}: {what}" for what in found]
                    if options.screenshots:
                        file = name.strip("/").replace("/", "-") or "home"
                        page.screenshot(options.screenshots / f"{file}-{width}-{scheme}.png")
        faults += check_theme(page, address)
        faults += check_play(page, address)
    print("\n".join([*faults, f"{len(pages)} pages, {len(faults)} faults"]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
