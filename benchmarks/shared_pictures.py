r"""Gathers the pictures without labels that the weights of the space photos were distilled over.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb oca
    npm pack emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0   # and unpack both
    python benchmarks/shared_pictures.py pictures --openclipart oca/usr/share/openclipart/png \
        --noto google/img/google/64 --fluent fluent/assets

Of openclipart the folders that networks are tried on are left out, and so is each picture that is
there too or comes twice. Of the emoji each has one skin tone, and flags are left out.
"""

import argparse
import re
import shutil
from pathlib import Path

from levit_search.files import file_digest

_TRIED = (
    *("animals", "food", "people", "transportation", "recreation", "tools", "plants"),
    *("electronics", "computer/hardware", "computer/icons/etiquette-theme"),
)
_LEFT_OUT = re.compile("1f3f[bcdef]|^1f1..-1f1", re.IGNORECASE)  # skin tones, flags of countries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    for name in ("openclipart", "noto", "fluent"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    asked = parser.parse_args()
    drawings = {path: file_digest(path) for path in sorted(asked.openclipart.rglob("*.png"))}
    tried = {path for folder in _TRIED for path in (asked.openclipart / folder).rglob("*.png")}
    seen = {drawings[path] for path in tried}
    count = 0
    for path, digest in drawings.items():
        if path not in tried and digest not in seen:
            seen.add(digest)
            _put(path, asked.out / "openclipart" / path.relative_to(asked.openclipart))
            count += 1
    for name in ("noto", "fluent"):
        for path in sorted(getattr(asked, name).iterdir()):
            if not _LEFT_OUT.search(path.name):
                _put(path, asked.out / name / path.name)
                count += 1
    print(f"{asked.out}: {count} pictures")


def _put(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


if __name__ == "__main__":
    main()
