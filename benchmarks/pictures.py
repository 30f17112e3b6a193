"""What searches of folders of pictures come to, and whether predict.py says the same.

    python benchmarks/pictures.py SPACE.yaml FOLDER... --seeds 3 --json benchmarks/pictures.json

Each FOLDER has train/CLASS/* and val/CLASS/*. For each seed the space is searched on it, the most
accurate network is exported, and the exported predict.py classifies the files of val/, which no
search has read. Printed are medians over seeds of the top-1 on test as the export measured it, and
of predict.py's, which must be the same. A folder that is refused has the message in their place.
What was done is kept in --out, and the same command goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from levit_search.files import write_json
from levit_search.study.folder import environment


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "levit_search", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")


def searched(space: str, folder: Path, seed: int, out: Path, further: list[str]) -> dict[str, Any]:
    """Search and export once; ``{test_top1_percent, predict_top1_percent, ...}`` or ``refused``."""
    study = out / f"{folder.name}-{seed}"
    kept = study / "pictures.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    settings = ["--set", f"data.root={folder}", "--seed", seed, *further]
    run = command("run", space, "--study", study, *settings, "--json")
    if run.returncode == 2:
        return {"refused": run.stderr.strip().splitlines()[-1]}
    export = command("export", study, "--pick", "accurate", "--force", "--json")
    if export.returncode not in (0, 1) or not export.stdout:
        raise SystemExit(f"{study}: {export.stderr.strip()}")
    written = json.loads(export.stdout)
    found = {
        "exit_code": run.returncode,
        "seconds": json.loads(run.stdout)["seconds"],
        "val_top1_percent": written["val_top1_percent"],
        "test_top1_percent": written["test_top1_percent"],
        "predict_top1_percent": predicted(Path(written["dir"]), folder / "val"),
        "latency_ms": written["latency_ms"],
    }
    write_json(kept, found)
    return found


def predicted(export: Path, val: Path) -> float:
    """The top-1 accuracy of an export's predict.py on the files of class folders, in percent."""
    files = [path for path in sorted(val.rglob("*")) if path.is_file()]
    done = subprocess.run(
        [sys.executable, export / "predict.py", "--json", "--top", "1", *files],
        capture_output=True,
        encoding="utf-8",
    )
    answers = [each for each in json.loads(done.stdout) if "top" in each]
    right = [
        each["top"][0]["class"] == Path(each["image"]).relative_to(val).parts[0] for each in answers
    ]
    return 100 * statistics.mean(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "pictures")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", action="append", default=[], help="a further word for `run`")
    arguments = parser.parse_args()
    rows = []
    for folder in arguments.folders:
        found = [
            searched(arguments.space, folder.absolute(), seed, arguments.out, arguments.run)
            for seed in range(arguments.seeds)
        ]
        row: dict[str, Any] = {"folder": folder.name, "seeds": found}
        refused = [each["refused"] for each in found if "refused" in each]
        if refused:
            print(f"{folder.name:20} refused: {refused[0]}", flush=True)
        else:
            for name in ("test_top1_percent", "predict_top1_percent"):
                row[name] = statistics.median(each[name] for each in found)
            each = ", ".join(f"{one['test_top1_percent']:.1f}" for one in found)
            print(
                f"{folder.name:20} test {row['test_top1_percent']:6.2f} % ({each}), predict.py "
                f"{row['predict_top1_percent']:6.2f} %",
                flush=True,
            )
        rows.append(row)
    if arguments.json is not None:
        write_json(arguments.json, {"rows": rows, "environment": environment(sys.argv)})


if __name__ == "__main__":
    main()
