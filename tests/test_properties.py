"""Whatever is written into the files that users write, or on the command line, gives no traceback.

A plain run takes the same few hundred documents each time. ``.ci/audit N`` takes N others of every
kind, by way of the environment variable ``LEVIT_SEARCH_FUZZ``.
"""

import contextlib
import copy
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import typer.main
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from levit_search import architecture as architectures
from levit_search import cli, cost
from levit_search.architecture import Architecture
from levit_search.configuration import read_yaml, write_yaml
from levit_search.errors import InputError, LevitSearchError, TrialError
from levit_search.model import build
from levit_search.space import Limits, Space
from levit_search.study import Study, StudyConfig, read_config
from tests.conftest import ROOT
from tests.networks import tiny_description, tiny_space
from tests.random_networks import random_network

FUZZ = os.environ.get("LEVIT_SEARCH_FUZZ")


def examples(count: int) -> Callable[[Any], Any]:
    """So many inputs that are always the same, or as many others as the environment says."""
    return settings(
        max_examples=int(FUZZ) if FUZZ else count,
        derandomize=FUZZ is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )


# ---------------------------------------------------------------------------- what people may write

SPECIAL = [
    *(0, -1, 1, 2**31, 2**63, 2**64 - 1, -(2**63), 10**9, 0.0, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *(
        "",
        " ",
        "null",
        "~",
        "1e999",
        "300M",
        "-1G",
        "nanM",
        "${HOME}",
        "{name}",
        "{0}",
        "%s",
        "../x",
    ),
    *("/", ".", "/dev/null", "ssh://", "ssh://@", "ray://", "timm/resnet18", "x#1", "a@b", "#"),
    *(
        "\x00",
        "\x1b[31m",
        "\u202e",
        "\ufeff",
        "é" * 300,
        "x" * 5000,
        "💥",
        "\n\n",
        "a: b",
        "&a",
        "*a",
    ),
    *(
        "cpu",
        "cuda",
        "digits",
        "folder",
        "torch/x",
        "hfds/",
        "wds/x",
        "journal",
        "sqlite:///x/y.db",
    ),
    *([], {}, [[]], [{}], {"": ""}, {"choices": []}, {"choices": [1, 2]}, {"range": [1, 3]}),
    *(
        {"range": [3, 1]},
        {"range": [1, 10**9]},
        {"choices": [[1], [2, 3]]},
        {"choices": [{}, None]},
    ),
    *({"kind": "ssh"}, {"kind": "command", "python": ["true"]}, {"kind": ["ssh"]}, {"kind": None}),
]
KEYS = [
    "",
    "kind",
    "name",
    "target",
    "version",
    "choices",
    "range",
    "0",
    "x" * 300,
    "ü",
    "\x1b[2J",
    "<<",
]

scalars = st.one_of(
    st.sampled_from(SPECIAL).map(copy.deepcopy),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a document, the whole included."""
    yield path
    pairs = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in pairs:
        yield from places(value, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, documents: list[Any], most: int = 3) -> Any:
    """A valid document with some of it replaced, left out, added or doubled."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(0, most))):
        *parents, last = draw(st.sampled_from([*places(document)][1:] or [("",)]))
        node = document
        for key in parents:
            node = node[key]
        change = draw(st.sampled_from(["replace", "replace", "delete", "add", "wrap", "rename"]))
        if change == "replace":
            node[last] = draw(values)
        elif change == "delete":
            del node[last]
        elif change == "wrap":
            node[last] = [node[last]] * draw(st.sampled_from([1, 2, 30]))
        elif isinstance(node, dict):
            key = draw(st.sampled_from(KEYS) | scalars.filter(_is_key))
            node[key] = draw(values) if change == "add" else node.pop(last)
        else:
            node.append(draw(values))
        if not isinstance(document, dict) or not document:
            break
    return document


def _is_key(value: Any) -> bool:
    return not isinstance(value, list | dict)


PARTS = [
    *(
        "\t",
        "\n",
        "- ",
        ": ",
        "? ",
        "&a ",
        "*a",
        "<<: *a\n",
        "!!python/object/apply:os.system [id]",
    ),
    *(
        "!!set ",
        "!!binary x",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "{",
        "}",
        "[",
        "]",
        "'",
        '"',
        "|\n",
        ">",
    ),
    *("\x00", "\ufeff", "\x85", "# ", "2024-13-45", "1:2:3", "0x" + "f" * 99, "\\ud800", "=", "~"),
]


@st.composite
def texts(draw: st.DrawFn, documents: list[Any]) -> bytes:
    """A file: a changed document, or the text of one with bits of YAML thrown in, or anything."""
    kind = draw(st.sampled_from(["document"] * 6 + ["text"] * 3 + ["bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    document = draw(mutated(documents))
    written = yaml.safe_dump(document, allow_unicode=draw(st.booleans()), sort_keys=False)
    if kind == "text":
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, len(written)))
            gone = draw(st.sampled_from([0, 0, 1, 5]))
            written = written[:place] + draw(st.sampled_from(PARTS)) + written[place + gone :]
    return written.encode("utf-8", "surrogatepass")


def dumped(name: str) -> dict[str, Any]:
    return architectures.published(name).model_dump(mode="json")


SPACES = [
    tiny_space(),
    tiny_space(
        latency={"target": "cpu", "seconds": 1.0},
        targets={"four": {"target": "cpu", "threads": 4}, "pi": "ssh://pi@pi.local:22"},
        objectives=["top1_percent", "latency_ms@four"],
        limits={"flops": "300M", "latency_ms": 5},
        teacher={"name": "resnet18", "options": {"a": 1}, "recipe": {"epochs": 2}},
        engine={"kind": "ray", "jobs": 2, "resources": {"x": 1}},
        hypervolume_reference={"top1_percent": 10},
        start=[tiny_description(), "LeViT-128S"],
        storage="journal",
    ),
    *(yaml.safe_load(path.read_text()) for path in sorted((ROOT / "spaces").glob("*.yaml"))),
]
NETWORKS = [tiny_description(), dumped("LeViT-256"), dumped("graft-2-6"), dumped("ablation-A1")]
TARGETS = [
    {
        "pi": {"target": "ssh://pi@raspberrypi.local", "threads": 4},
        "graviton": {"preset": "paper-arm", "target": {"kind": "ssh", "host": "g", "python": "p"}},
        "desk": "ssh://me@desk",
        "box": {"target": {"kind": "command", "python": ["x"], "env": {"A": "b"}}},
    }
]

# ---------------------------------------------------------------------------------- how it is given


class ReachedError(LevitSearchError):
    """Stands where hours of work, a device or the network would come next: the input was valid."""

    exit_code = 0


def reached(*_: Any, **__: Any) -> NoReturn:
    raise ReachedError("reached")


def begun(config: StudyConfig, *others: Any) -> NoReturn:
    config.space(others[3]).survey(5)  # the file, for messages
    reached()


def unreachable(config: Any, *_: Any) -> NoReturn:
    raise InputError(f"data: {config.name} is not on this machine")


@pytest.fixture(autouse=True, scope="module")
def _cheap_ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is trained, measured, downloaded or connected to; all of them work in one folder."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(tmp_path_factory.mktemp("properties"))
        for name, value in {"CACHE": "cache", "CONFIG": "config"}.items():
            patch.setenv(f"XDG_{name}_HOME", str(Path(value).absolute()))
        for place, end in {
            "levit_search.search.begin": begun,
            "levit_search.latency.Probe": reached,
            "levit_search.distill.single.train_single": reached,
            "levit_search.reproduce.measuring.reproduce": reached,
            "levit_search.batches.open_batches": reached,
            "levit_search.data.survey.Stream": unreachable,
            "levit_search.data.survey.Rows": unreachable,
            "levit_search.data.survey.TorchSet": unreachable,
            "levit_search.data.sets._download_fashion": reached,
            "levit_search.baseline.check_runs": reached,
            "levit_search.baseline.count": reached,
            "levit_search.audit.audit": reached,
            "levit_search.latency.discovery._ask": answered,
            "webbrowser.open": lambda _: False,
        }.items():
            patch.setattr(place, end)
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def answered(*_: Any) -> NoReturn:
    raise TrialError("nothing is asked here")


class Done(NamedTuple):
    code: Any
    out: str
    err: str


def ran(*arguments: object) -> Done:
    """A command in this process; whatever it raises, but for its end, goes through."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before, sys.argv = sys.argv, ["levit-search", *map(str, arguments)]
    code: Any = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Done(code, *told)


def check(done: Done, *names: str) -> None:
    """An end as it is promised, and a message that names what to look at."""
    assert done.code in (0, 1, 2, 130)
    assert "Traceback" not in done.err
    for text in (done.out, done.err):
        assert all(letter.isprintable() or letter in "\n\t\u00a0" for letter in text)
    if done.code:
        said = message(done)
        assert 1 <= len(said.splitlines()) <= 3, said
        assert len(said) < 2000
        assert any(name in said for name in names), said


def message(done: Done) -> str:
    """What is said beside progress."""
    lines = done.err.strip().splitlines()
    return "\n".join(line for line in lines if not line.startswith(("Reading ", "[0:")))


def written(name: str, content: bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -------------------------------------------------------------------------------------- the files


@pytest.mark.slow
@examples(50)
@given(texts(SPACES))
def test_no_space_file_gives_a_traceback(content: bytes) -> None:
    path = written("space.yaml", content)
    check(ran("run", path), "space.yaml", "data", "reached")
    check(ran("space", path, "--sample", 5, "--json"), "space.yaml", "data")


@examples(60)
@given(texts(NETWORKS))
def test_no_architecture_file_gives_a_traceback(content: bytes) -> None:
    path = written("network.yaml", content)
    done = ran("count", path, "--json")
    check(done, "network.yaml")
    if done.code == 0:
        network = architectures.load(str(path))
        assert (
            architectures.parse(json.loads(json.dumps(network.model_dump(mode="json")))) == network
        )


def resolved_studies() -> list[dict[str, Any]]:
    found = []
    for number, space in enumerate(SPACES[:2]):
        path = written(f"base-{number}.yaml", yaml.safe_dump(space).encode())
        found.append(read_config(path).model_dump(mode="json"))
    return found


@pytest.mark.slow
@examples(25)
@given(st.data())
def test_no_study_file_gives_a_traceback(data: st.DataObject) -> None:
    content = data.draw(texts(resolved_studies()))
    folder = written("study/study.yaml", content).parent
    check(ran("front", folder, "--format", "json"), "study")
    check(ran("export", folder), "study", "--pick")
    check(ran("show", f"{folder}#0"), "study")


@examples(40)
@given(texts(TARGETS))
def test_no_targets_file_gives_a_traceback(content: bytes) -> None:
    path = written("targets.yaml", content)
    try:
        check(ran("targets", "--json"), "targets.yaml")
        check(ran("probe", "LeViT-128S", "--target", "pi"), "targets.yaml", "probe", "reached")
    finally:
        path.unlink()


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [".".join(map(str, path)) for space in SPACES for path in places(space) if path]
            )
            | st.text(max_size=10),
            values.map(lambda value: yaml.safe_dump(value, default_flow_style=True).strip())
            | st.text(max_size=20),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_no_setting_gives_a_traceback(given_settings: list[tuple[str, str]]) -> None:
    path = written("space.yaml", yaml.safe_dump(SPACES[1]).encode())
    options = [part for key, value in given_settings for part in ("--set", f"{key}={value}")]
    check(ran("run", path, *options), "space.yaml", "--set", "data")


# ------------------------------------------------------------------------------- the command line


def commands(
    group: Any, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each command with the options that it has."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            options = [option for each in command.params for option in each.opts]
            yield (*words, name), [option for option in options if option.startswith("-")]


# What looks at the whole machine takes seconds each time, whatever it is given.
COMMANDS = [each for each in commands(typer.main.get_command(cli.app)) if each[0] != ("doctor",)]
WORDS = [
    *(
        "space.yaml",
        "network.yaml",
        "study",
        "study#0",
        "nothing.yaml",
        "LeViT-128S",
        "levit",
        ".",
        "/",
    ),
    *("grafting", "blocks", "static", "speed", "digits", "knee", "trial=0", "latency_ms<=5", "x=1"),
    *(
        "timm/resnet18",
        "timm/nothing",
        "timm/vit_tiny_patch16_224@31",
        "trial=-1",
        "a,b",
        "=",
        "--",
    ),
    *(
        "0",
        "1",
        "-1",
        "2",
        "1e999",
        "nan",
        "99999999999999999999",
        "90s",
        "2h30m",
        "1s1s",
        "cpu",
        "all",
    ),
    *("fp16", "largest", "json", "svg", "png", "terminal", "openvino", "short", "none", "true", ""),
    *(
        "ssh://x",
        "ssh://-oProxyCommand=x",
        "ray://",
        "\x1b[31m",
        "é",
        "x" * 3000,
        "/dev/null",
        "\udcff",
    ),
]


@examples(80)
@given(st.data())
def test_no_command_line_gives_a_traceback(data: st.DataObject) -> None:
    written("space.yaml", yaml.safe_dump(SPACES[0]).encode())
    written("network.yaml", yaml.safe_dump(NETWORKS[0]).encode())
    if not Path("study").is_dir() or not (Path("study") / "study.yaml").is_file():
        written("study/study.yaml", yaml.safe_dump(resolved_studies()[0]).encode())
    words, options = data.draw(st.sampled_from(COMMANDS))
    word = st.sampled_from(WORDS) | st.text(max_size=8).filter(lambda text: "\x00" not in text)
    arguments = data.draw(st.lists(word, max_size=2))
    for _ in range(data.draw(st.integers(0, 3))):
        arguments += [data.draw(st.sampled_from(options)), *data.draw(st.lists(word, max_size=1))]
    if words == ("space",):  # thousands are drawn otherwise
        arguments += ["--sample", "5"]
    done = ran(*words, *arguments)
    assert done.code in (0, 1, 2, 130)
    assert "Traceback" not in done.err and len(message(done).splitlines()) <= 3


# ------------------------------------------------------------------------------------ round trips


@examples(40)
@given(st.integers(0, 10**6))
def test_an_architecture_comes_back_from_its_file(seed: int) -> None:
    network = random_network(seed)
    path = written("network.yaml", write_yaml(network.model_dump(mode="json")).encode())
    again = architectures.load(str(path))
    assert again == network and again.id == network.id
    assert architectures.parse(yaml.safe_load(path.read_text())).id == network.id, "by any reader"


@examples(30)
@given(mutated(SPACES, most=2))
def test_a_configuration_comes_back_from_its_study(document: Mapping[str, Any]) -> None:
    path = written("space.yaml", yaml.safe_dump(document).encode())
    try:
        config = read_config(path)
    except LevitSearchError:
        return
    folder = Path("kept")
    written("kept/study.yaml", write_yaml(config.model_dump(mode="json")).encode())
    again = Study.open(folder).config
    differing = [
        key for key in type(again).model_fields if getattr(again, key) != getattr(config, key)
    ]
    assert not differing, [(getattr(config, key), getattr(again, key)) for key in differing]
    assert read_config(folder / "study.yaml", {}) == config, "it is resolved already"
    # Text that any reader of YAML takes for the same.
    assert yaml.safe_load((folder / "study.yaml").read_text()) == read_yaml(folder / "study.yaml")


# --------------------------------------------------------------------------------- decoded networks


@st.composite
def templates(draw: st.DrawFn) -> dict[str, Any]:
    """A space of one family or both, whose choices may or may not go together."""

    def some(*numbers: Any) -> Any:
        few = draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=3, unique=True))
        return {"choices": few} if draw(st.booleans()) else few[0]

    def block() -> dict[str, Any]:
        return {
            "num_heads": some(1, 2, 3, 5),
            "key_dim": some(1, 4, 8, 16),
            "attn_ratio": some(1, 1.5, 2, 4),
            "mlp_ratio": some(1, 2, 0.5),
        }

    size = draw(st.sampled_from([16, 24, 32, 33]))
    ends = {"image_size": size, "in_channels": 1, "num_classes": draw(st.sampled_from([2, 10]))}
    family = draw(st.sampled_from(["levit", "levit", "graft", {"choices": ["levit", "graft"]}]))
    grafts = {
        "donor": {"name": "resnet18", "stages": some(0, 1, 2), "stem": "small"},
        "grid": some(4, 8, 5),
        "trunk": {"depth": some(0, 1, 2), "embed_dim": some(12, 16), "num_heads": some(1, 2, 3)},
    }
    if family == "graft":
        return {"family": family, **ends, **grafts}
    count = draw(st.integers(1, 3))
    template: dict[str, Any] = {
        "family": family,
        **ends,
        **(grafts if family != "levit" else {}),
        "stem": draw(
            st.sampled_from(
                [
                    {"kind": "conv", "layers": 2},
                    {"kind": "patch", "patch_size": 4},
                    {"kind": "conv"},
                    {
                        "kind": {"choices": ["conv", "patch", "resnet18"]},
                        "layers": some(1, 2),
                        "patch_size": some(4, 5, 8),
                        "stages": some(1, 2),
                        "width_scale": some(0.25, 0.3, 1),
                    },
                    {"kind": {"choices": ["conv", "resnet26"]}, "layers": some(2, 3, 12)},
                ]
            )
        ),
        "stages": [
            {"depth": {"range": [1, 2]}, "embed_dim": some(8, 12, 16), **block()}
            for _ in range(count)
        ],
        "activation": some("hardswish", "gelu", "relu"),
        "norm": some("batch", "layer"),
        "position": some("bias", "embedding"),
        "distillation": some(True, False),
    }
    if count > 1:
        template["shrinks"] = [{**block(), "stride": some(2, 3)} for _ in range(count - 1)]
    if count > 1 and draw(st.booleans()):
        template["num_stages"] = {"range": [1, count]}
    return template


@examples(15)
@given(templates(), st.integers(0, 2**32 - 1))
def test_what_a_space_decodes_is_valid_or_refused(template: dict[str, Any], seed: int) -> None:
    import numpy as np
    import torch

    try:
        space = Space(template, Limits(), "file")
    except InputError as error:
        check_refusal(error, "file: architecture")
        return
    chance = np.random.default_rng(seed)
    for _ in range(3):
        try:
            network = space.draw(chance)
        except InputError as error:
            check_refusal(error, "architecture: ")
            continue
        check_counts(network)
        values = space.encode(network)
        assert values is not None and space.decode(values) == network
        with torch.device("meta"):
            images = torch.empty(2, network.in_channels, network.image_size, network.image_size)
            logits = build(network).eval()(images)
        assert logits.shape == (2, network.num_classes)


def check_refusal(error: InputError, place: str) -> None:
    assert str(error).startswith(place) and "\n" not in str(error)


def check_counts(network: Architecture) -> None:
    """In closed form, from the module, and by its layers."""
    import torch

    with torch.device("meta"):
        held = sum(each.numel() for each in build(network).parameters())
    total = cost.cost(network)
    assert total.params == held == sum(layer.params for layer in cost.layers(network))
    assert total.flops > 0 and total.activations > 0


def test_the_cheap_ends_are_what_the_commands_call() -> None:
    """Or the searches above would begin."""
    path = written("space.yaml", yaml.safe_dump(SPACES[0]).encode())
    for arguments in (
        ["run", path],
        ["probe", "LeViT-128S"],
        ["train", "LeViT-128S"],
        ["reproduce", "variants"],
    ):
        done = ran(*arguments)
        assert done.code == 0 and done.err.endswith("levit-search: reached\n"), arguments
