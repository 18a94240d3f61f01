"""How soon the page of a scored data set can be used, in a real browser.

    python -m benchmarks.page_load [--rounds 7] [--rows 500 2000 4000] [--tokens 60]

Pages of made-up pairs (random words and numbers, with everything a record may hold: three
alternatives a token, segments, one further estimator, error spans) are written to a file and opened
in Chromium, each time in a fresh context. Times are those of the browser's own clock. `drawn`: from
the beginning of the navigation until the list and the first row stand and keys work. `painted`:
until they are on the screen. `main thread`: processor time of the page's main thread until then,
which a busy machine changes less. The others: from an event until its result is on the screen.
Writes results/page_load/{results.json,README.md}.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from benchmarks.machine import describe
from tokenq.credit.alignment import aligned_segments
from tokenq.report.html import PageHead, write_page

TARGET_SECONDS, TARGET_ROWS = 2.0, 2000
BETA = 0.1

# After the second frame what the event changed is on the screen.
_SHOWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_MEASURES = {
    "next row": "document.dispatchEvent(new KeyboardEvent('keydown', { key: 'j' }))",
    "words instead of tokens": "document.dispatchEvent(new KeyboardEvent('keydown', { key: '2' }))",
    "first sentences": "document.dispatchEvent(new KeyboardEvent('keydown', { key: '3' }))",
    "sort by blame": "(() => { const s = document.getElementById('sort'); s.value = 'worst';"
    " s.dispatchEvent(new Event('change')); })()",
    "filter": "document.getElementById('disagree').click()",
}


def records(rows: int, tokens: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Scored pairs of random words, `tokens` a response and its end token."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]
    for row in range(rows):
        chosen = draw.choices(words, k=tokens)
        # The other answer shares about half of it, in runs.
        rejected = [*chosen[: tokens // 2], *draw.choices(words, k=tokens - tokens // 2)]
        sides = {
            name: _side(draw, words, each)
            for name, each in (("chosen", chosen), ("rejected", rejected))
        }
        pair = {
            "row": row,
            "prompt": [{"role": "user", "content": " ".join(draw.choices(words, k=40))}],
            "responses": sides,
            "margin": sides["chosen"]["reward"] - sides["rejected"]["reward"],
        }
        yield {**pair, "segments": [each.to_dict() for each in aligned_segments(pair)]}


def _side(draw: random.Random, words: list[str], chosen: list[str]) -> dict[str, Any]:
    # A full stop after every dozen words, as a token of its own.
    pieces = [
        piece
        for i, word in enumerate(chosen)
        for piece in ((f" {word}", ".") if i % 12 == 11 else (f" {word}",))
    ]
    pieces = [pieces[0].lstrip(), *pieces[1 : len(chosen)]]
    offsets, at = [], 0
    for piece in pieces:
        offsets.append([at, at + len(piece)])
        at += len(piece)
    text = "".join(pieces)
    logps = [-draw.expovariate(0.4) for _ in range(len(pieces) + 1)]
    refs = [logp + draw.gauss(0.1, 1.0) for logp in logps]
    rewards = [BETA * (logp - ref) for logp, ref in zip(logps, refs, strict=True)]
    place = draw.randrange(len(pieces))
    span = {"start": offsets[place][0], "end": offsets[place][1], "p_value": draw.random()}
    return {
        "response": text,
        "reward": sum(rewards),
        "tokens": [*pieces, "</s>"],
        "offsets": [*offsets, [len(text), len(text)]],
        "logps": logps,
        "ref_logps": refs,
        "rewards": rewards,
        "alternatives": [
            [{"token": f" {draw.choice(words)}", "logp": -1.234, "ref_logp": -2.345}] * 3
            for _ in logps
        ],
        "estimates": {"centred": [reward + 0.01 for reward in rewards]},
        "spans": [{**span, "reward": rewards[place], "flagged": span["p_value"] < 0.05}],
    }


def measure(browser: Browser, file: Path) -> dict[str, float]:
    """Open the page once; milliseconds of each measure."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    browser_tools = context.new_cdp_session(page)
    browser_tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(file.as_uri())
    found = page.evaluate(
        """async () => {
            const first = await new Promise((done) => new PerformanceObserver((seen) => {
                const entry = seen.getEntriesByName("first-contentful-paint")[0];
                if (entry) done(entry.startTime);
            }).observe({ type: "paint", buffered: true }));
            const drawn = performance.getEntriesByName("drawn")[0].startTime;
            return { drawn, painted: Math.max(first, drawn) };
        }"""
    )
    metrics = browser_tools.send("Performance.getMetrics")["metrics"]
    spent = {metric["name"]: metric["value"] for metric in metrics}
    found["main thread"] = 1000 * spent["TaskDuration"]
    for name, event in _MEASURES.items():
        found[name] = page.evaluate(
            f"async () => {{ const start = performance.now(); {event}; await {_SHOWN};"
            " return performance.now() - start; }"
        )
    context.close()
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, TARGET_ROWS, 4000])
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("results/page_load"))
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.exit(2, "error: no chromium or google-chrome on the PATH to open pages in\n")
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    pages = []
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        for rows in args.rows:
            file = Path(folder) / f"{rows}.html"
            head = PageHead("policy", "reference", BETA, rows=rows, ordered=rows)
            start = time.perf_counter()
            write_page(file, records(rows, args.tokens), head, page_rows=rows)
            pages.append(
                {
                    "rows": rows,
                    "file": str(file),
                    "megabytes": file.stat().st_size / 1e6,
                    "made and written, s": time.perf_counter() - start,
                    "raw": [],
                }
            )
        for _ in range(args.rounds):
            for each in pages:
                each["raw"].append(measure(browser, Path(each["file"])))
        version = browser.version
        browser.close()
    for each in pages:
        del each["file"]
        each["milliseconds"] = {
            name: statistics.median(once[name] for once in each["raw"]) for name in each["raw"][0]
        }
        each["slowest painted"] = max(once["painted"] for once in each["raw"])
    rows = " ".join(map(str, args.rows))
    results = {
        "command": f"python -m benchmarks.page_load --rounds {args.rounds} --rows {rows} "
        f"--tokens {args.tokens}",
        "machine": describe(1),
        "load average": os.getloadavg()[0],
        "chromium": version,
        "target": {"rows": TARGET_ROWS, "seconds": TARGET_SECONDS},
        "pages": pages,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "README.md").write_text(page_of(results))
    print(page_of(results))


def page_of(results: dict[str, Any]) -> str:
    """The result as a short Markdown page."""
    names = list(results["pages"][0]["milliseconds"])
    lines = [
        "# Opening the page of a scored data set",
        "",
        f"`{results['command']}` on {results['machine']['processor']}, "
        f"{results['machine']['date']}, Chromium {results['chromium']}; the load average was "
        f"{results['load average']:.1f}. Milliseconds, medians of "
        f"{len(results['pages'][0]['raw'])} fresh contexts; in brackets the slowest. Pairs of "
        "made-up text with all that a record may hold. `painted`: from the navigation until list "
        f"and first row are on the screen; the target is {1000 * TARGET_SECONDS:.0f} for "
        f"{TARGET_ROWS:,} pairs. `main thread`: the processor time that the page's main thread "
        "took for it. The others: from the event until its result is on the screen.",
        "",
        f"| pairs | size, MB | {' | '.join(names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for each in results["pages"]:
        cells = [
            f"{value:.0f} [{each['slowest painted']:.0f}]" if name == "painted" else f"{value:.0f}"
            for name, value in each["milliseconds"].items()
        ]
        lines.append(f"| {each['rows']:,} | {each['megabytes']:.1f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
