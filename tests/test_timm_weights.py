"""Checkpoints of timm's networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from levit_search.baseline import load_checkpoint
from levit_search.errors import InputError
from tests import bombs


def resnet(**options: Any) -> nn.Module:
    network: nn.Module = timm.create_model("test_resnet", **{"num_classes": 7, **options})
    return network


@pytest.fixture
def file(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(state: dict[str, Any]) -> Path:
        path = tmp_path / "file.pt"
        torch.save(state, path)
        return path

    return write


def test_a_classifier_for_other_classes_stays_as_it_was_where_it_may_be_new(file):
    network, path = resnet(num_classes=10), file(resnet().state_dict())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=r"has \[7, 96\] as fc\.weight, which is \[10, 96\] in"):
        load_checkpoint(network, path, "mine")
    load_checkpoint(network, path, "mine", new_classifier=True)
    for name, tensor in network.state_dict().items():
        expected = before[name] if name.startswith("fc.") else torch.load(path)[name]
        assert torch.equal(tensor, expected), name


def test_a_file_without_a_classifier_fits_where_it_may_be_new(file):
    path = file(resnet(num_classes=0).state_dict())
    load_checkpoint(resnet(), path, "mine", new_classifier=True)
    with pytest.raises(InputError, match=r"lacks fc\.weight, which is \[7, 96\] in the network"):
        load_checkpoint(resnet(), path, "mine")


def test_a_network_without_a_classifier_leaves_out_the_norm_before_it(file):
    whole = timm.create_model("levit_128s", num_classes=7)
    features = timm.create_model("levit_128s", num_classes=0)
    assert "head.bn.weight" in whole.state_dict().keys() - features.state_dict().keys()
    load_checkpoint(features, file(whole.state_dict()), "mine")
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in features.state_dict().items())


def test_a_network_with_a_classifier_does_not_leave_out_a_part_of_the_file_s(file):
    path = file({**resnet().state_dict(), "fc.norm.weight": torch.ones(96)})
    with pytest.raises(InputError, match=r"has fc\.norm\.weight \[96\], and the network has no su"):
        load_checkpoint(resnet(), path, "mine", new_classifier=True)


def test_counts_of_batches_may_be_missing(file):
    learnt = resnet().state_dict()
    old = {name: t for name, t in learnt.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(learnt)
    network = resnet()
    load_checkpoint(network, file(old), "mine")
    assert torch.equal(network.state_dict()["fc.weight"], learnt["fc.weight"])


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_three_channels_become_others(channels, file):
    learnt, network = resnet().state_dict(), resnet(in_chans=channels)
    load_checkpoint(network, file(learnt), "mine")
    found, weight = network.state_dict()["conv1.0.weight"], learnt["conv1.0.weight"]
    assert torch.allclose(found, timm.models.adapt_input_conv(channels, weight))


@pytest.mark.parametrize(("theirs", "ours"), [(4, 1), (4, 2), (1, 3)])
def test_other_than_three_channels_are_refused(theirs, ours, file):
    path = file(resnet(in_chans=theirs).state_dict())
    told = rf"has \[16, {theirs}, 3, 3\] as conv1\.0\.weight, which is \[16, {ours}, 3, 3\]"
    with pytest.raises(InputError, match=f"^mine: {path}: {told} in the network; expected the w"):
        load_checkpoint(resnet(in_chans=ours), path, "mine", new_classifier=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [(3, "has int as fc.bias, no tensor"), (torch.zeros(7, device="meta"), "does not fit")],
)
def test_what_is_no_plain_tensor_is_refused(changed: int | Tensor, told, file):
    path = file({**resnet().state_dict(), "fc.bias": changed})
    with pytest.raises(InputError, match=told):
        load_checkpoint(resnet(), path, "mine", new_classifier=True)


@pytest.mark.parametrize(
    "content",
    [
        lambda path: bombs.pickled(path),
        lambda path: bombs.torch_checkpoint(path),
        lambda _: bombs.inflated_checkpoint(),
        lambda _: bombs.asking_checkpoint(True),
        lambda _: b"",
    ],
    ids=["pickle", "program", "inflated", "asking", "empty"],
)
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_what_is_no_checkpoint_is_refused(content, name, tmp_path):
    made, path = tmp_path / "made", tmp_path / name
    path.write_bytes(content(made))
    with pytest.raises(InputError, match=f"^mine: {path}: is no readable checkpoint"):
        load_checkpoint(resnet(), path, "mine")
    assert not made.exists()
