"""Files that carry a checksum, and those from before there was one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from levit_search.architecture import Architecture
from levit_search.errors import InputError
from levit_search.files import DamagedFileError, check_weights, read_checksummed, write_checksummed
from levit_search.model import build, load_weights, save_weights


def test_content_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, "ü"], "b": {"1": 1e-30}}
    write_checksummed(tmp_path / "a.json", content)
    assert read_checksummed(tmp_path / "a.json") == content


def test_a_file_from_before_there_were_checksums_is_taken_as_it_is(
    tmp_path: Path, tiny: Architecture
) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_checksummed(tmp_path / "a.json") == {"a": 1}
    model = build(tiny)
    check_weights(save(model.state_dict()))
    (tmp_path / "w.safetensors").write_bytes(save(model.state_dict()))
    assert load_weights(build(tiny), tmp_path / "w.safetensors") == "ours"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("1.5", "1.25"), "other content"),
        (lambda text: text.replace("checksum", "checksun"), "other content"),
        (lambda text: text[:-5], "cut short"),
        (lambda text: "", "empty"),
        (lambda text: "[1]", "something else"),
        (lambda text: "[" * 10**5, "cut short"),
    ],
)
def test_changed_content_is_damaged(change, told, tmp_path):
    path = tmp_path / "a.json"
    write_checksummed(path, {"a": 1.5})
    path.write_text(change(path.read_text()))
    with pytest.raises(DamagedFileError, match=told):
        read_checksummed(path)


def test_weights_carry_a_checksum_that_other_readers_do_not_mind(
    tmp_path: Path, tiny: Architecture
) -> None:
    path, model = tmp_path / "w.safetensors", build(tiny)
    save_weights(model, path)
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in load_file(path).items()
    )
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="its checksum is that of other weights"):
        load_weights(model, path)
