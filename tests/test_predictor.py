"""Networks taken apart into blocks, the blocks' graphs, and latency predicted from them."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from levit_search import architecture as architectures
from levit_search.architecture import Architecture, published, published_names
from levit_search.cost import Cost, cost, layers
from levit_search.errors import InputError, TrialError
from levit_search.latency.block_graphs import (
    Block,
    block_module,
    blocks,
    distinct_blocks,
    input_shape,
    unfolded,
    write_block,
)
from levit_search.latency.latency_model import (
    BlockTable,
    Calibration,
    Predictor,
    calibration_networks,
)
from levit_search.model import Layout, Model, build, fold
from levit_search.space import Limits, Space
from levit_search.study import read_config
from tests.networks import tiny_description, tiny_space
from tests.random_networks import images_for, random_network, randomised

LAYOUTS: tuple[Layout, ...] = ("tokens", "maps")

# The layers of a block's network that are the block itself.
LAYERS = {
    "stem": ("stem.", "position_embedding"),
    "donor": ("donor.",),
    "embedding": ("trunk.projection", "trunk.class", "trunk.distillation", "trunk.position"),
    "attention": ("stages.0.blocks.0.", "trunk.blocks.0."),
    "shrink": ("shrinks.0.",),
    "heads": ("head", "trunk.norm"),
}


def block_cost(block: Block) -> Cost:
    rows = [row[1:] for row in layers(block.network) if row.name.startswith(LAYERS[block.kind])]
    return Cost(*(sum(column) for column in zip(*rows, strict=True)))


def check_costs_add_up(network: Architecture) -> None:
    found = distinct_blocks(network)
    each = [[count * part for part in block_cost(block)] for block, count in found.items()]
    assert Cost(*(sum(column) for column in zip(*each, strict=True))) == cost(network)


@pytest.mark.parametrize("name", published_names())
def test_the_blocks_of_published_networks_have_all_their_cost(name: str) -> None:
    check_costs_add_up(published(name))


def test_the_blocks_of_any_network_have_all_its_cost() -> None:
    for seed in range(300):
        check_costs_add_up(random_network(seed))


def test_a_levit_comes_apart_into_stem_pairs_shrinking_blocks_and_heads() -> None:
    found = distinct_blocks(published("LeViT-128S"))
    assert [(block.kind, count) for block, count in found.items()] == [
        ("stem", 1),
        ("attention", 2),
        ("shrink", 1),
        ("attention", 3),
        ("shrink", 1),
        ("attention", 4),
        ("heads", 1),
    ]
    assert len({block.id for block in found}) == 7


def test_a_graft_comes_apart_into_donor_embedding_pairs_and_heads() -> None:
    kinds = Counter(block.kind for block in blocks(published("graft-2-6")))
    assert kinds == {"donor": 1, "embedding": 1, "attention": 6, "heads": 1}
    kinds = Counter(block.kind for block in blocks(published("graft-0-12")))
    assert kinds == {"embedding": 1, "attention": 12, "heads": 1}
    kinds = Counter(block.kind for block in blocks(published("graft-4-0")))
    assert kinds == {"donor": 1, "heads": 1}


def ids(network: Architecture) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for block in distinct_blocks(network):
        found.setdefault(block.kind, set()).add(block.id)
    return found


def changed(network: Architecture, **changes: object) -> Architecture:
    return architectures.parse({**network.model_dump(mode="json"), **changes})


def test_what_costs_nothing_at_inference_changes_no_block() -> None:
    for name in ("LeViT-192", "graft-2-6"):
        network = published(name)
        assert ids(changed(network, drop_path=0.3)) == ids(network)


def test_classes_change_the_heads_alone() -> None:
    for name in ("LeViT-192", "graft-2-6", "graft-4-0"):
        before, after = ids(published(name)), ids(changed(published(name), num_classes=10))
        assert before.pop("heads") != after.pop("heads")
        assert before == after


def test_depth_changes_no_block() -> None:
    network = published("LeViT-192")
    stages = [{**stage.model_dump(), "depth": 7} for stage in network.stages]
    assert ids(changed(network, stages=stages)) == ids(network)


def test_stages_of_equal_shape_are_shared_between_networks() -> None:
    # The last stages of the two have 384 channels and 4 x 4 tokens, but other heads.
    small, large = ids(published("LeViT-128S")), ids(published("LeViT-128"))
    assert small["stem"] == large["stem"] and small["heads"] == large["heads"]
    assert len(small["attention"] & large["attention"]) == 1
    other = changed(published("LeViT-128S"), stem={"kind": "patch", "patch_size": 16})
    assert ids(other)["attention"] == small["attention"]


def test_trunks_do_not_depend_on_the_donor_and_embeddings_on_its_map_alone() -> None:
    network = published("graft-2-6")
    other = changed(network, donor={"name": "resnet26", "stages": 2})
    assert ids(network)["donor"] != ids(other)["donor"]
    for kind in ("embedding", "attention", "heads"):
        assert ids(network)[kind] == ids(other)[kind]
    narrow = changed(network, donor={"name": "resnet18", "stages": 2})
    assert ids(network)["embedding"] != ids(narrow)["embedding"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation", "gelu"), ("attention_activation", "none"), ("norm", "layer")],
)
def test_the_style_of_a_network_changes_its_pairs(key: str, value: str) -> None:
    network = published("LeViT-192")
    assert not ids(network)["attention"] & ids(changed(network, **{key: value}))["attention"]


def test_blocks_survive_json_with_their_ids() -> None:
    for network in (published("LeViT-128S"), published("graft-2-6")):
        for block in blocks(network):
            again = Block.model_validate_json(block.model_dump_json())
            assert again == block and again.id == block.id


def with_weights_of(whole: Model, block: Block, seen: Counter[str], layout: Layout) -> Model:
    """The block's network with the weights that its place in ``whole`` has.

    ``seen`` counts the blocks before it; pairs are counted from the last shrinking block on.
    """
    stage, pair = seen["shrink"], seen["attention"]
    places = {
        "stages.0.blocks.0.": f"stages.{stage}.blocks.{pair}.",
        "trunk.blocks.0.": f"trunk.blocks.{pair}.",
        "shrinks.0.": f"shrinks.{stage}.",
    }
    model, weights = unfolded(block, layout), whole.state_dict()
    own = [name for name in model.state_dict() if name.startswith(LAYERS[block.kind])]
    for start, place in places.items():
        weights |= {
            name: weights[place + name.removeprefix(start)]
            for name in own
            if name.startswith(start)
        }
    model.load_state_dict({name: weights[name] for name in own}, strict=False)
    return model


def check_chain(network: Architecture, layout: Layout) -> None:
    whole = randomised(build(network, layout))
    images = images_for(network, 2)
    seen: Counter[str] = Counter()
    x = images
    with torch.no_grad():
        for block in blocks(network):
            assert tuple(x.shape) == input_shape(block, layout, 2)
            x = block_module(with_weights_of(whole, block, seen, layout), block)(x)
            seen[block.kind] += 1
            if block.kind == "shrink":
                seen["attention"] = 0
        torch.testing.assert_close(x, fold(whole)(images), rtol=1e-3, atol=1e-4)


_FURTHER = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20, 2)]


# Convolutional, patch and ResNet stems in turn, then grafts.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [0, 2, 4, 6, 20, 22, 28, 30, 32, 34, *_FURTHER])
def test_blocks_in_a_row_are_the_network(seed: int, layout: Layout) -> None:
    check_chain(random_network(seed), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "seed", [0, 1, 20, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (4, 5, 9, 28))]
)
def test_graphs_of_blocks_run(seed: int, layout: Layout, tmp_path: Path) -> None:
    network = random_network(seed)
    found = list(distinct_blocks(network))
    shapes = [input_shape(block, layout, 3) for block in found] + [(3, network.num_classes)]
    for block, reads, gives in zip(found, shapes[:-1], shapes[1:], strict=True):
        path = tmp_path / f"{block.id}.onnx"
        copies = write_block(block, layout, 3, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert tuple(session.get_inputs()[0].shape) == reads
        (out,) = session.run(None, {"x": np.ones(reads, dtype=np.float32)})
        assert out.shape == gives and np.isfinite(out).all()
        assert copies == (4 if block.kind == "attention" else 1)


def the_table(networks: Sequence[Architecture], seed: int = 0) -> BlockTable:
    """A world in which a block takes a little by itself and the rest by its FLOPs, more or less."""
    chance = np.random.default_rng(seed)
    table = BlockTable("tokens", 1, run_ms=0.02)
    for block in table.missing(networks):
        table.blocks_ms[block.id] = 0.05 + block_cost(block).flops / 4e7 * chance.uniform(0.7, 1.3)
    return table


def imagenet_space() -> Space:
    return read_config(Path(__file__).parents[1] / "spaces/levit-imagenet.yaml").space()


@pytest.fixture(scope="module")
def networks() -> list[Architecture]:
    return calibration_networks(imagenet_space(), 24, seed=3)


def whole_ms(table: BlockTable, network: Architecture) -> float:
    return 0.9 * table.sum_ms(network) + 0.05 * cost(network).params / 1e6


def test_the_calibration_is_found_where_nothing_disturbs(networks: list[Architecture]) -> None:
    table = the_table(networks)
    measured = [(network, whole_ms(table, network)) for network in networks[::3]]
    predictor = Predictor.fit(table, measured)
    assert predictor.scale == pytest.approx(0.9)
    assert predictor.ms_per_million_params == pytest.approx(0.05)
    assert predictor.loo_mape_percent == pytest.approx(0, abs=1e-6)
    for network in networks:
        found = predictor.predict(network)
        assert found.latency_ms == pytest.approx(whole_ms(table, network))
        assert found.low_ms == pytest.approx(found.high_ms)


def test_intervals_hold_95_of_100_measurements(networks: list[Architecture]) -> None:
    table, chance = the_table(networks), np.random.default_rng(1)
    true_ms = np.array([whole_ms(table, network) for network in networks])
    entries = [
        Calibration(network.id, table.sum_ms(network), cost(network).params, 1.0)
        for network in networks
    ]
    inside, scales = [], []
    for _ in range(150):
        noisy_ms = true_ms * (1 + 0.04 * chance.standard_normal(len(networks)))
        order = chance.permutation(len(networks))
        calibration = [
            Calibration(entries[i].network, entries[i].sum_ms, entries[i].params, noisy_ms[i])
            for i in order[:6]
        ]
        predictor = Predictor(table, calibration)
        scales.append(predictor.scale)
        for index in order[6:10]:
            found = predictor.predict(networks[index])
            assert found.low_ms < found.latency_ms < found.high_ms
            inside.append(found.low_ms < noisy_ms[index] < found.high_ms)
    assert 0.93 < np.mean(inside) < 0.97
    assert np.mean(scales) == pytest.approx(0.9, rel=0.02)


def test_errors_of_leaving_one_out_are_those_of_refitting(networks: list[Architecture]) -> None:
    table, chance = the_table(networks), np.random.default_rng(2)
    measured = [(n, whole_ms(table, n) * chance.uniform(0.95, 1.05)) for n in networks[:6]]
    errors = []
    for index, (network, measured_ms) in enumerate(measured):
        others = Predictor.fit(table, measured[:index] + measured[index + 1 :])
        errors.append(abs(others.predict(network).latency_ms / measured_ms - 1))
    found = Predictor.fit(table, measured).loo_mape_percent
    assert found == pytest.approx(100 * np.mean(errors))


def test_a_network_far_from_the_calibration_has_a_wider_interval() -> None:
    near, far = published("LeViT-256"), published("graft-4-0")
    table = BlockTable("tokens", 1, run_ms=0.0)
    table.blocks_ms = {block.id: 1.0 for block in table.missing([near, far])}
    sums_ms, million_params = (14, 16, 18, 15, 17), (18, 20, 17, 21, 19)
    calibration = [
        Calibration(str(sum_ms), sum_ms, params * 10**6, sum_ms * factor)
        for sum_ms, params, factor in zip(
            sums_ms, million_params, (1.02, 0.97, 1.01, 1.0, 1.03), strict=True
        )
    ]
    predictor = Predictor(table, calibration)
    found = [predictor.predict(network) for network in (near, far)]
    widths = [(each.high_ms - each.low_ms) / each.latency_ms for each in found]
    assert widths[1] > 2 * widths[0]


def test_blocks_are_never_counted_against_a_network() -> None:
    table = BlockTable("tokens", 1)
    calibration = [Calibration(str(i), 10.0 - i, 10**6 * (i + 1), i + 1.0) for i in range(5)]
    predictor = Predictor(table, [*calibration, Calibration("6", 20.0, 10**6, 0.5)])
    assert predictor.scale == 0 and predictor.ms_per_million_params > 0


def test_too_few_networks_and_wrong_latencies_are_refused(networks: list[Architecture]) -> None:
    table = the_table(networks)
    with pytest.raises(InputError, match="4 measured networks or more, not from 3"):
        Predictor.fit(table, [(network, 1.0) for network in networks[:3]])
    with pytest.raises(InputError, match="nan ms is no latency"):
        Predictor.fit(table, [(network, float("nan")) for network in networks[:4]])


def test_unknown_blocks_are_named_by_kind(networks: list[Architecture]) -> None:
    table, graft = the_table(networks), published("graft-0-12")
    pair = next(block for block in blocks(graft) if block.kind == "attention")
    table.blocks_ms[pair.id] = 1.0
    with pytest.raises(TrialError, match=r"2 of the network's 3 blocks .* \(embedding, heads\)"):
        table.sum_ms(graft)


def test_table_and_predictor_survive_json(networks: list[Architecture], tmp_path: Path) -> None:
    table, chance = the_table(networks), np.random.default_rng(5)
    table.save(tmp_path / "blocks.json")
    again = BlockTable.load(tmp_path / "blocks.json")
    assert again == table
    measured = [(n, whole_ms(table, n) * chance.uniform(0.95, 1.05)) for n in networks[::4]]
    predictor = Predictor.fit(table, measured)
    description = json.loads(json.dumps(predictor.as_json()))
    assert description["loo_mape_percent"] == predictor.loo_mape_percent
    restored = Predictor.from_json(again, description)
    assert [restored.predict(n) for n in networks] == [predictor.predict(n) for n in networks]


@pytest.mark.parametrize("text", ["", "[1]", '{"layout": "tokens"}', '{"blocks_ms": 1, "x": 2}'])
def test_a_file_that_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "blocks.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no table of block latencies"):
        BlockTable.load(path)
    with pytest.raises(InputError, match="no table of block latencies"):
        BlockTable.load(tmp_path / "absent.json")
    with pytest.raises(InputError, match="no description of a latency predictor"):
        Predictor.from_json(BlockTable("tokens", 1), {"calibration": [{}] * 4})


class Clock:
    """Reports for a graph what runs there: its number of nodes, and one more for the run."""

    def __init__(self) -> None:
        self.chunks: list[int] = []

    def __call__(self, paths: Sequence[Path]) -> list[float]:
        import onnx

        self.chunks.append(len(paths))
        return [1.0 + len(onnx.load(path).graph.node) for path in paths]


def test_a_table_is_filled_in_chunks_and_only_with_what_is_missing() -> None:
    network = architectures.parse(tiny_description())
    more = architectures.parse(
        tiny_description(
            stages=[
                {"depth": 1, "embed_dim": width, "num_heads": 1, "key_dim": 4}
                for width in (16, 24, 32)
            ]
        )
    )
    table, clock = BlockTable("tokens", 1), Clock()
    reports: list[tuple[str, float]] = []
    saves: list[int] = []

    def add(*wanted: Architecture) -> None:
        table.add(
            table.missing(wanted),
            clock,
            lambda text, fraction: reports.append((text, fraction)),
            lambda: saves.append(len(table.blocks_ms)),
        )

    assert [block.kind for block in table.missing([network])] == ["stem", "attention", "heads"]
    add(network)
    # First the run that computes nothing: a constant, an addition and one for the run itself.
    assert clock.chunks == [1, 3] and table.run_ms == 3
    add(network, more)
    # Nine blocks, of which the stem is known: 16 channels at 4 x 4.
    assert clock.chunks == [1, 3, 6] and saves == [3, 9]
    assert reports == [("timing blocks 1 to 3 of 3", 0.0), ("timing blocks 1 to 6 of 6", 0.0)]
    assert not table.missing([network, more])
    add(network, more)
    assert clock.chunks == [1, 3, 6]


def test_a_graph_that_cannot_be_timed_fails_the_trial() -> None:
    table = BlockTable("tokens", 1)
    wanted = table.missing([architectures.parse(tiny_description())])
    with pytest.raises(TrialError, match="nan"):
        table.add(wanted, lambda paths: [float("nan")] * len(paths), print, print)


def test_calibration_networks_spread_over_the_flops_within_the_limits() -> None:
    space = imagenet_space()
    found = calibration_networks(space, 8, seed=0)
    flops = [cost(network).flops for network in found]
    assert flops == sorted(flops) and len(set(flops)) == 8
    assert flops[-1] > 4 * flops[0] and flops[-1] < 2.5e9
    assert [n.id for n in found] == [n.id for n in calibration_networks(space, 8, seed=0)]
    assert [n.id for n in found] != [n.id for n in calibration_networks(space, 8, seed=1)]


def test_a_small_space_gives_all_its_networks_or_is_refused(tmp_path: Path) -> None:
    template = {"image_size": 16, "in_channels": 1, "num_classes": 10}
    template |= tiny_space()["architecture"]  # type: ignore[operator]
    few = Space(template, Limits())
    assert len(calibration_networks(few, 50, seed=0)) == 14
    with pytest.raises(InputError, match="and the space has 0"):
        calibration_networks(Space(template, Limits(flops=10)), 8, seed=0)
