"""The pictures of the page in these documents: opens a page, presses keys, saves what is seen.

python docs/hooks/screenshot.py demo/index.html docs/assets/which-tokens.png --row 5 --keys 2b
"""

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Take one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--row", type=int, default=0, help="the row that is shown")
    parser.add_argument("--keys", default="", help="keys pressed one after the other")
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument("--height", type=int, default=900, help="pixels; the width is 1280")
    args = parser.parse_args()
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        size = {"width": 1280, "height": args.height}
        page = browser.new_page(viewport=size, color_scheme=args.theme)
        page.goto(f"{args.page.resolve().as_uri()}#row={args.row}")
        for key in args.keys:
            page.keyboard.press(key)
        page.screenshot(path=args.picture)
        browser.close()


if __name__ == "__main__":
    main()
