"""How long a report takes to make and to show, and how large it is.

    python benchmarks/report.py --json benchmarks/report.json

A study of 1 000 made-up trials in the space of spaces/levit-fashion.yaml, with weights for its
front. Seconds to make the page are those of a new process, `levit-search report`, as a person waits
for it. The page is opened in headless Chromium from disk: until the first picture is painted, and
until it answers to the pointer. Each is done several times; printed are the median and the worst.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from made_study import make, weigh

from levit_search.files import write_json
from levit_search.study import Study, read_config
from levit_search.study.folder import environment

SPACE = Path(__file__).parents[1] / "spaces" / "levit-fashion.yaml"
MUST = {"make_seconds": 10.0, "megabytes": 8.0, "first_picture_seconds": 2.0}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def made(folder: Path, trials: int) -> Study:
    """The study, made if it is not there."""
    if (folder / "study.yaml").exists():
        return Study.open(folder)
    study = make(folder, read_config(SPACE, {"search.trials": trials}), trials)
    weigh(study)
    return study


def seconds_to_make(folder: Path) -> float:
    begun = time.perf_counter()
    command = [sys.executable, "-m", "levit_search", "report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def seconds_to_show(page: Path, times: int) -> list[dict[str, float]]:
    """Of each opening, seconds until the first picture and until it is interactive."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for _ in range(times):
            tab = browser.new_page()
            tab.goto(page.absolute().as_uri())
            tab.wait_for_function("performance.getEntriesByName('interactive').length > 0")
            marks = tab.evaluate(
                "performance.getEntriesByType('mark').map((mark) => [mark.name, mark.startTime])"
            )
            found.append({name: ms / 1000 for name, ms in marks})
            tab.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--study", type=Path, help="where the study is kept, or is made")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = made(given.study or Path(temporary) / "study", given.trials)
        making = [seconds_to_make(study.folder) for _ in range(given.times)]
        page = study.folder / "report.html"
        shown = seconds_to_show(page, given.times)
        figures: dict[str, list[float]] = {
            "make_seconds": making,
            "megabytes": [page.stat().st_size / 1e6],
            "first_picture_seconds": [each["first-picture"] for each in shown],
            "interactive_seconds": [each["interactive"] for each in shown],
        }
    rows: dict[str, dict[str, Any]] = {
        name: {
            "median": round(statistics.median(values), 3),
            "worst": round(max(values), 3),
            "must": MUST.get(name),
        }
        for name, values in figures.items()
    }
    print(f"{'':24}{'median':>10}{'worst':>10}{'must':>8}")
    for name, row in rows.items():
        must = "" if row["must"] is None else f"{row['must']:g}"
        print(f"{name:24}{row['median']:10.2f}{row['worst']:10.2f}{must:>8}")
    if given.json:
        document = {"trials": given.trials, "times": given.times, "figures": rows}
        write_json(given.json, {**document, "environment": environment(sys.argv)})


if __name__ == "__main__":
    main()
