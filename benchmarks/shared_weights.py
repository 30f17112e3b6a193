"""Puts a trained supernet into the package, for `weights: shared` of the space of its name.

    levit-search supernet photos --data generated --pictures DIR --teacher NAME --study STUDY
    python benchmarks/shared_weights.py STUDY --licence TEXT --sources TEXT

What follows stems and stages is left out (classifiers of other classes), the rest is kept in half
precision, with the card of the training: its commands (one that it started from comes first), its
settings, its curve and whose pictures and teacher it learnt from.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from levit_search.errors import InputError
from levit_search.files import WEIGHTS_KEY, weights_checksum, write_atomically, write_checksummed
from levit_search.pretrained import weights_digest
from levit_search.study import Study
from levit_search.supernet import read_card, supernet_folder

_PACKAGED = Path(__file__).parents[1] / "levit_search" / "shared_weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--licence", required=True, help="of the weights, and of the teacher's")
    parser.add_argument("--sources", required=True, help="whose pictures and answers they are")
    asked = parser.parse_args()
    study = Study.open(asked.study)
    made = sessions_of(study)
    place, out = supernet_folder(asked.study), _PACKAGED / study.config.name
    card = read_card(place)
    with safe_open(place / "weights.safetensors", "pt") as file:
        weights = {
            name: file.get_tensor(name).half().contiguous()
            for name in file.keys()  # noqa: SIM118 (it is no mapping)
            if not name.startswith(("heads.", "heads_dist."))
        }
    out.mkdir(parents=True, exist_ok=True)
    raw = save(weights, {WEIGHTS_KEY: weights_checksum(save(weights))})
    write_atomically(out / "weights.safetensors", raw)
    told = {"licence": asked.licence, "sources": asked.sources, "made": made}
    here = f"{Path.cwd()}/"  # where the training ran is of no use to others
    write_checksummed(out / "card.json", json.loads(json.dumps({**card, **told}).replace(here, "")))
    count = sum(each.numel() for each in weights.values())
    print(f"{out}: {len(raw) / 1e6:.2f} MB, {count:,} weights")


def sessions_of(study: Study) -> list[dict[str, Any]]:
    """The commands, machines and revisions of a study, after those of what it started from.

    Raises:
        InputError: it started from weights of the package that are no longer those.
    """
    weights = study.config.train.weights
    before: list[dict[str, Any]] = []
    if weights.startswith("shared/"):
        begun_from = read_card(supernet_folder(study.folder))["made_of"]["weights"]
        if weights_digest(weights) != begun_from:
            raise InputError(f"{study.folder}: started from other {weights} than the package has")
        before = read_card(_PACKAGED / weights.partition("/")[2])["made"]
    elif weights != "fresh":
        # A study that is begun names the supernet itself, within the folder of its study.
        before = sessions_of(Study.open(Path(weights).parent))
    sessions = json.loads((study.folder / "environment.json").read_text("utf-8"))["sessions"]
    for session in sessions:
        session["command"][0] = Path(session["command"][0]).name
    return [*before, *sessions]


if __name__ == "__main__":
    main()
