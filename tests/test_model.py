"""The module of an architecture: what it computes, how it starts, folding and its ONNX graph."""

import copy
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from levit_search.architecture import Levit, parse
from levit_search.model import LevitModel, export_onnx, fold, set_layout
from levit_search.model.blocks import AttentionCore, DropPath, offsets
from tests.random_networks import randomised

TINY = {
    "image_size": 32,
    "num_classes": 5,
    "stem": {"kind": "conv", "channels": [8, 16]},
    "stages": [
        {"depth": 2, "embed_dim": 16, "num_heads": 2, "key_dim": 8},
        {"depth": 1, "embed_dim": 24, "num_heads": 3, "key_dim": 4},
    ],
}

VARIANTS = {
    "conv": {},
    "one_head": {"distillation": False},
    "patch": {"stem": {"kind": "patch", "patch_size": 4}},
    "resnet18": {"stem": {"kind": "resnet18", "stages": 2}},
    "resnet26": {"stem": {"kind": "resnet26", "stages": 1}},
    "layer_norm": {"norm": "layer"},
    "layer_norm_resnet18": {"norm": "layer", "stem": {"kind": "resnet18", "stages": 1}},
    "position_embedding": {"position": "embedding"},
    "no_attention_activation": {"attention_activation": "none"},
    "wide_stride": {"shrinks": [{"num_heads": 4, "key_dim": 8, "stride": 3}]},
}

every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def network(**changes: object) -> Levit:
    return parse({**TINY, **changes})


def images(model: LevitModel, count: int) -> Tensor:
    architecture = model.architecture
    size = architecture.image_size
    return torch.randn(count, architecture.in_channels, size, size)


def test_training_gives_both_heads_and_evaluation_their_mean():
    model = randomised(LevitModel(network()))
    heads: dict[str, Tensor] = {}
    for name in ("head", "head_dist"):
        getattr(model, name).register_forward_hook(
            lambda module, args, output, name=name: heads.update({name: output})
        )
    batch = images(model, 3)

    by_class, by_teacher = model.train()(batch)
    assert by_class.shape == by_teacher.shape == (3, 5)
    assert torch.equal(by_class, heads["head"])
    assert torch.equal(by_teacher, heads["head_dist"])

    logits = model.eval()(batch)
    assert not torch.allclose(heads["head"], heads["head_dist"], atol=1e-3)
    torch.testing.assert_close(logits, (heads["head"] + heads["head_dist"]) / 2)


@pytest.mark.parametrize("training", [True, False])
def test_one_head_gives_one_tensor(training):
    model = LevitModel(network(distillation=False, in_channels=1)).train(training)
    logits = model(images(model, 3))
    assert isinstance(logits, Tensor)
    assert logits.shape == (3, 5)


def test_only_norms_that_close_a_residual_branch_start_at_zero():
    model = LevitModel(network())
    weights = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    }
    blocks = ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]
    closing = {f"{block}.attention.projection.norm" for block in blocks}
    closing |= {f"{block}.mlp.contract.norm" for block in [*blocks, "shrinks.0"]}
    assert {name for name, weight in weights.items() if not weight.any()} == closing
    assert all((weights[name] == 1).all() for name in weights.keys() - closing)


def test_fresh_blocks_are_the_identity_and_a_fresh_shrinking_block_is_not_zero():
    model = LevitModel(network()).eval()
    tokens = torch.randn(2, 64, 16)
    assert torch.equal(model.stages[0](tokens), tokens)
    shrunk = model.shrinks[0](tokens)
    assert shrunk.shape == (2, 16, 24)
    assert shrunk.std() > 0.01


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    drop = DropPath(0.25)
    ones = torch.ones(8000, 3, 2)
    per_image = drop(ones).flatten(1)
    assert torch.equal(per_image.amin(1), per_image.amax(1))
    assert per_image.unique().tolist() == pytest.approx([0, 4 / 3])
    # Five standard deviations of a mean of 8000 draws.
    assert per_image.mean().item() == pytest.approx(1, abs=5 * (1 / 3 / 8000) ** 0.5)
    assert torch.equal(drop.eval()(ones), ones)


def test_drop_path_acts_in_every_residual_block_while_training():
    model = LevitModel(network(drop_path=0.9, norm="layer"))
    tokens = torch.randn(64, 64, 16)
    for block in [*model.stages[0].blocks, model.stages[1].blocks[0]]:
        inputs = tokens if block is not model.stages[1].blocks[0] else torch.randn(64, 16, 24)
        untouched = (block(inputs) == inputs).flatten(1).all(1)
        assert 64 * 0.5 < untouched.sum() < 64  # both branches are dropped for 81 %
        assert not torch.equal(block.eval()(inputs), inputs)
    shrink = model.shrinks[0]
    undropped = (shrink(tokens) == shrink.attention(tokens)).flatten(1).all(1)
    assert 64 * 0.6 < undropped.sum() < 64


@every_variant
def test_folding_keeps_logits(changes):
    torch.manual_seed(1)
    model = randomised(LevitModel(network(**changes)))
    batch = images(model, 4)
    before = copy.deepcopy(model.state_dict())

    folded = fold(model)

    assert model.training
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules()
    )
    with torch.no_grad():
        logits = model.eval()(batch)
        assert logits.shape == (4, 5)
        assert logits.std(dim=0).min() > 0.01, "the images must matter for this to mean much"
        torch.testing.assert_close(folded(batch), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("image_size", [32, (32, 20)], ids=str)
def test_attention_uses_softmax_of_scaled_products_and_the_bias_of_the_absolute_offset(image_size):
    """Against equation 1 of the paper, written out query by query."""
    model = randomised(LevitModel(network(image_size=image_size)))
    core, grid, stride = model.shrinks[0].attention.core.double(), model.architecture.grids[0], 2
    assert grid == ((8, 8) if image_size == 32 else (8, 5))
    queries = list(product(*(range(0, side, stride) for side in grid)))
    keys = list(product(*map(range, grid)))
    heads, key_dim, value_dim = core.num_heads, 8, 32
    q = torch.randn(1, heads, len(queries), key_dim, dtype=torch.double)
    k = torch.randn(1, heads, len(keys), key_dim, dtype=torch.double)
    v = torch.randn(1, heads, len(keys), value_dim, dtype=torch.double)
    expected = torch.zeros(1, len(queries), heads * value_dim, dtype=torch.double)
    for head, (i, (x, y)) in product(range(heads), enumerate(queries)):
        bias = core.attention_bias[head].reshape(grid)
        scores = torch.stack(
            [
                q[0, head, i] @ k[0, head, j] / key_dim**0.5 + bias[abs(x - x2), abs(y - y2)]
                for j, (x2, y2) in enumerate(keys)
            ]
        )
        shares = scores.exp() / scores.exp().sum()
        expected[0, i, head * value_dim : (head + 1) * value_dim] = shares @ v[0, head]
    torch.testing.assert_close(core(q, k, v), expected)


@pytest.mark.parametrize(
    ("grid", "stride"),
    [((1, 1), 1), ((4, 4), 1), ((4, 4), 2), ((5, 5), 2), ((7, 7), 3), ((1, 5), 2), ((6, 3), 2)],
)
def test_offsets_agree_with_a_double_loop(grid, stride):
    rows, columns = grid
    queries = [(y, x) for y in range(0, rows, stride) for x in range(0, columns, stride)]
    keys = [(y, x) for y in range(rows) for x in range(columns)]
    expected = [[abs(y - y2) * columns + abs(x - x2) for y2, x2 in keys] for y, x in queries]
    assert offsets(grid, stride).tolist() == expected


@pytest.mark.parametrize("axis", [1, 2], ids=["rows", "columns"])
def test_a_block_commutes_with_flipping_the_token_map_but_not_with_shifting_it(axis):
    model = randomised(LevitModel(network())).double().eval()
    block = model.stages[0].blocks[0]
    tokens = torch.randn(2, 8, 8, 16, dtype=torch.double)

    def on_map(x_brrc: Tensor) -> Tensor:
        return block(x_brrc.flatten(1, 2)).unflatten(1, (8, 8))

    with torch.no_grad():
        flipped = on_map(tokens).flip(axis)
        torch.testing.assert_close(on_map(tokens.flip(axis)), flipped, atol=1e-9, rtol=0)
        shifted = on_map(tokens).roll(1, axis)
        assert (on_map(tokens.roll(1, axis)) - shifted).abs().max() > 1e-3


@pytest.mark.parametrize("position", ["bias", "embedding"])
def test_only_a_position_embedding_tells_an_image_from_its_mirror_image(position):
    """Patches of one colour and odd grids (5, then 3), so that nothing else breaks the symmetry."""
    changes = {"image_size": 20, "stem": {"kind": "patch", "patch_size": 4}}
    model = randomised(LevitModel(network(position=position, **changes))).double().eval()
    patches = torch.randn(2, 3, 5, 5, dtype=torch.double)
    batch = patches.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    with torch.no_grad():
        difference = (model(batch) - model(batch.flip(3))).abs().max().item()
    if position == "bias":
        assert difference < 1e-9
    else:
        assert difference > 1e-4


def test_no_weight_decay_names_what_knows_positions():
    assert LevitModel(network()).no_weight_decay() == {
        "stages.0.blocks.0.attention.core.attention_bias",
        "stages.0.blocks.1.attention.core.attention_bias",
        "shrinks.0.attention.core.attention_bias",
        "stages.1.blocks.0.attention.core.attention_bias",
    }
    embedded = LevitModel(network(position="embedding"))
    assert embedded.no_weight_decay() == {"position_embedding"}


@pytest.mark.parametrize(
    "changes",
    [{}, VARIANTS["resnet18"], {"norm": "layer", "position": "embedding", "activation": "gelu"}],
    ids=["levit", "resnet18", "layer_norm_embedding_gelu"],
)
def test_onnx_graph_gives_the_logits_of_the_module(changes, tmp_path):
    import onnxruntime

    model = randomised(LevitModel(network(**changes)))
    path = tmp_path / "model.onnx"
    export_onnx(model, path, batch_size=3)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    batch = images(model, 3)
    (logits,) = session.run(["logits"], {"images": batch.numpy()})
    with torch.no_grad():
        expected = model.eval()(batch).numpy()
    assert expected.std(axis=0).min() > 0.01
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["tokens", "maps"])
def test_onnx_graph_holds_every_weight_and_computes_no_shapes(layout, tmp_path):
    model = LevitModel(network())  # many of its fresh weights are equal
    set_layout(model, layout)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, batch_size=1)

    graph = onnx.load(path).graph
    onnx.checker.check_model(path, full_check=True)
    assert [value.name for value in graph.input] == ["images"]
    weights = {weight.name: np.prod(weight.dims) for weight in graph.initializer}
    assert {node.op_type for node in graph.node}.isdisjoint({"Shape", "Identity", "Unsqueeze"})
    for node in graph.node:
        if node.op_type in ("Transpose", "Reshape"):
            assert node.input[0] not in weights, "weights are stored as they are used"
    folded = fold(model)
    parameters = [*folded.parameters(), *(core.bias_hqt for core in attention_cores(folded))]
    large = [tensor.numel() for tensor in parameters if tensor.numel() > 8]
    assert sorted(size for size in weights.values() if size > 8) == sorted(large)


@every_variant
def test_exporting_leaves_the_model_as_it_was(changes, tmp_path):
    model = randomised(LevitModel(network(**changes)))
    before = {name: (tensor, tensor.clone()) for name, tensor in tensors(model).items()}

    export_onnx(model, tmp_path / "model.onnx", batch_size=1)

    assert model.training
    after = tensors(model)
    assert after.keys() == before.keys()
    for name, (tensor, copied) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, copied)


def test_training_on_does_not_change_a_folded_copy():
    model = randomised(LevitModel(network(norm="layer")))
    batch = images(model, 2)
    folded = fold(model)
    with torch.no_grad():
        expected = folded(batch)
        for parameter in model.parameters():
            parameter.add_(1)
        assert torch.equal(folded(batch), expected)


def attention_cores(model: nn.Module) -> list[AttentionCore]:
    return [module for module in model.modules() if isinstance(module, AttentionCore)]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
