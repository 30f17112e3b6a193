"""Put what the tests of faults recorded into the table of docs/reliability.md.

pytest tests/faults --record /tmp/faults.jsonl && python -m tests.faults.table /tmp/faults.jsonl
"""

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tests.faults.conftest import DOCUMENT


def filled(document: str, records: list[dict[str, object]]) -> str:
    """The document with the counts of each row's last two columns but one put in.

    A row is ``| `key` fault | how | times | lost | command |``.
    """
    times: Counter[str] = Counter()
    lost: defaultdict[str, list[str]] = defaultdict(list)
    for each in records:
        times[each["fault"]] += each["times"]
        lost[each["fault"]] += each["lost"]

    def row(found: re.Match[str]) -> str:
        cells = found[0].split("|")
        key = found[1]
        if key in times:
            cells[3] = f" {times[key]} "
            cells[4] = f" {'; '.join(lost[key]) or 0} "
        return "|".join(cells)

    return re.sub(r"^\| `([\w-]+)` .*\|$", row, document, flags=re.MULTILINE)


def main() -> None:
    texts = [Path(path).read_text() for path in sys.argv[1:]]
    records = [json.loads(line) for text in texts for line in text.splitlines()]
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), records))


if __name__ == "__main__":
    main()
