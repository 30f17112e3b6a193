"""Which layout is faster here: linear layers over tokens or 1x1 convolutions over maps.

Each LeViT's graph over maps is timed in turn with its graph over tokens, ONNX Runtime, one run of
``--batch-size`` images. Prints a table, and with ``--json`` one JSON document.

    python benchmarks/layouts.py --threads 1 --batch-size 1 --seconds 6
"""

import argparse
import json
import tempfile
from pathlib import Path

from levit_search.architecture import LEVITS, published
from levit_search.latency import LatencyConfig, Probe
from levit_search.model import build, export_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each network")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = LatencyConfig(
        threads=options.threads, batch_size=options.batch_size, seconds=options.seconds, rounds=6
    )
    rows, device = [], {}
    with tempfile.TemporaryDirectory() as folder, Probe(config) as probe:
        for name in LEVITS:
            graphs = {}
            for layout in ("tokens", "maps"):
                graphs[layout] = Path(folder) / f"{name}-{layout}.onnx"
                export_onnx(build(published(name), layout), graphs[layout], options.batch_size)
            (found,) = probe.time_graphs([graphs["maps"]], graphs["tokens"])
            low, high = found.ratio_ci95
            device = found.device
            row = {
                "name": name,
                "tokens_ms": found.reference_ms,
                "maps_ms": found.latency_ms,
                "maps_to_tokens": found.ratio_to_reference,
                "ci95": [low, high],
                "pairs": found.pairs,
            }
            rows.append(row)
            if not options.json:
                print(
                    f"{name:12}  tokens {row['tokens_ms']:8.2f} ms  maps {row['maps_ms']:8.2f} ms  "
                    f"maps / tokens {row['maps_to_tokens']:.3f} ({low:.3f}-{high:.3f})",
                    flush=True,
                )
    known = {name: value for name, value in device.items() if name != "system"}
    settings = {"threads": options.threads, "batch_size": options.batch_size, **known}
    if options.json:
        print(json.dumps({"settings": settings, "rows": rows}, indent=2))
    else:
        print(", ".join(f"{key} {value}" for key, value in settings.items()))


if __name__ == "__main__":
    main()
