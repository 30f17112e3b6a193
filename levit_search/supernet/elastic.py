"""One set of weights for all networks of a space: a member's tensors are leading parts of them.

Shapes are named as in ``model.blocks``. A member has the leading channels of every width, the
leading heads of every attention block and of each head the leading channels of its queries, keys
and values, the leading blocks of every stage, and of the biases by offset those of the offsets that
its smaller grid has. Stems of different depth have convolutions of their own, and so has the
classifier after each number of stages.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import NotRequired

from levit_search.architecture import Levit, parse
from levit_search.errors import InputError
from levit_search.files import DamagedFileError, read_checksummed
from levit_search.model import LevitModel, load_exactly
from levit_search.model.blocks import Attention, AttentionCore, ShrinkAttention
from levit_search.model.levit import NormLinear
from levit_search.model.source import TrainedWeights
from levit_search.space import Envelope, stem_name


class Elastic(nn.Module):
    """The shared weights of an envelope, freshly initialised as the networks of ``model`` are.

    Batch-norm statistics are not shared: those of one member are wrong for all others.

    Args:
        envelope: what the weights have to hold.
        prepare: called with each freshly initialised network that they are made of.
        taught_classes: those of the second head, where a teacher knows others than the data has;
            networks have one head then once they are extracted.
    """

    def __init__(
        self,
        envelope: Envelope,
        prepare: Callable[[LevitModel], None] = lambda _: None,
        taught_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.envelope = envelope
        self._taught_classes = taught_classes
        models = {name: LevitModel(network) for name, network in envelope.networks.items()}
        for model in models.values():
            prepare(model)
        whole = models[stem_name(envelope.whole)]
        self.stems = nn.ModuleDict({name: model.stem for name, model in models.items()})
        self.stages, self.shrinks = whole.stages, whole.shrinks
        if envelope.whole.position == "embedding":
            self.position_embedding = whole.position_embedding
        self.heads = nn.ModuleDict(_heads(envelope, envelope.whole.num_classes))
        if envelope.whole.distillation:
            classes = taught_classes or envelope.whole.num_classes
            self.heads_dist = nn.ModuleDict(_heads(envelope, classes))
        _forget_statistics(self)

    def forward(self, images: Tensor, member: LevitModel) -> Tensor | tuple[Tensor, Tensor]:
        """What ``member``, made by :func:`skeleton`, answers with the shared weights; batch norm
        takes the statistics of the batch. Gradients go to the shared weights."""
        found: Tensor | tuple[Tensor, Tensor] = functional_call(
            member, self.parts(member), (images,)
        )
        return found

    def parts(self, member: LevitModel) -> dict[str, Tensor]:
        """The parameters of ``member`` by name, each a part of a shared one."""
        network = member.architecture
        if not self.envelope.holds(network):
            raise InputError(f"{network.summary()}: is no network of the supernet's space")
        shared = dict(self.named_parameters())
        indices = _indices(member, self)
        places = {
            "stem": f"stems.{stem_name(network)}",
            "head": f"heads.{len(network.stages)}",
            "head_dist": f"heads_dist.{len(network.stages)}",
        }
        found = {}
        for name, own in member.named_parameters():
            first, dot, rest = name.partition(".")
            tensor = shared[places.get(first, first) + dot + rest]
            if name.endswith("core.attention_bias"):  # of fewer heads and of a smaller grid
                core = name.removesuffix(".attention_bias")
                cores = [each.get_submodule(core) for each in (member, self)]
                (rows, columns), whole = (cast(AttentionCore, each).grid for each in cores)
                by_offset: Tensor = tensor.unflatten(1, whole)
                found[name] = by_offset[: len(own), :rows, :columns].flatten(1)
            elif name.startswith("head_dist.linear"):  # of all classes, however many they are
                shape = torch.Size([len(tensor), *own.shape[1:]])
                found[name] = _leading(tensor, shape, {})
            else:
                found[name] = _leading(tensor, own.shape, indices.get(name.rpartition(".")[0], {}))
        return found

    def extract(self, network: Levit) -> LevitModel:
        """A network of its own with a copy of its parts, in training mode; its batch-norm
        statistics are those of fresh networks until they are calibrated."""
        member = LevitModel(network).to(next(self.parameters()).device)
        with torch.no_grad():
            parts = {name: part.clone() for name, part in self.parts(member).items()}
        if self._taught_classes is not None:
            member.head_dist = None
            parts = {n: each for n, each in parts.items() if not n.startswith("head_dist.")}
        member.load_state_dict(parts, strict=False)
        return member

    def no_weight_decay(self) -> set[str]:
        """As :meth:`levit_search.model.LevitModel.no_weight_decay`."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.endswith("attention_bias") or name == "position_embedding"
        }


def skeleton(network: Levit) -> LevitModel:
    """The modules of a network that lend their structure to shared weights; its own are unused."""
    with torch.random.fork_rng(devices=[]):
        member = LevitModel(network)
    _forget_statistics(member)
    return member


def shared_source(folder: Path, stem: str, name: str) -> TrainedWeights:
    """What networks with a stem start from of a supernet in a folder.

    Args:
        folder: with ``card.json`` and ``weights.safetensors``.
        stem: see :func:`levit_search.space.stem_name`; of one that the supernet lacks, what follows
            the stem is a part all the same.

    Raises:
        InputError: there is no supernet, or it is damaged or of an earlier release.
    """
    try:
        card = read_card(folder)
    except FileNotFoundError:
        raise InputError(f"{name}: holds no supernet") from None
    if "bounds" not in card:
        raise InputError(
            f"{name}: this supernet was trained by an earlier release, which did not note what it "
            "holds; train it again"
        )
    where = f"{folder / 'card.json'}: bounds"
    bounds = {key: parse(each, where) for key, each in card["bounds"].items()}
    networks = {key: each for key, each in bounds.items() if isinstance(each, Levit)}
    envelope = Envelope(networks, tuple(card["num_stages"]))
    count = envelope.num_stages[-1]
    bound = networks.get(stem, envelope.whole)
    cut = {"stages": bound.stages[:count], "shrinks": bound.shrinks[: count - 1]}
    bound = bound.model_copy(update=cut)
    with torch.random.fork_rng(devices=[]):  # reading draws none of the caller's numbers
        elastic = Elastic(envelope, taught_classes=card["taught_classes"])
        load_exactly(elastic, folder / "weights.safetensors", but=("heads.", "heads_dist."))
        state = {**LevitModel(bound).state_dict(), **elastic.parts(skeleton(bound))}
    kept = {key: each.detach() for key, each in state.items() if not key.startswith("head")}
    return TrainedWeights(bound, kept, name, is_shared=True)


class SupernetEnd(TypedDict):
    """The largest network, or the smallest."""

    id: str
    summary: str
    params: int
    flops: int
    activations: int
    architecture: Mapping[str, object]


class SupernetCard(TypedDict):
    """What is read of a supernet's ``card.json``, which has the figures of its training, too."""

    made_of: dict[str, object]
    """See :func:`levit_search.supernet.keeping.identity`."""
    params: int
    bounds: NotRequired[dict[str, dict[str, object]]]
    """Of the envelope by stem; later than the first cards, as are the next two."""
    num_stages: NotRequired[list[int]]
    taught_classes: NotRequired[int | None]
    largest: SupernetEnd
    smallest: SupernetEnd
    epochs: int
    members: int
    seconds: float
    val_top1_percent: float
    curve: list[dict[str, float]]


def read_card(folder: Path) -> SupernetCard:
    """The card of a supernet.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is damaged.
    """
    try:
        card = read_checksummed(folder / "card.json")
        if not {"made_of", "curve", "largest", "smallest"} <= card.keys():
            raise DamagedFileError("it is no supernet's card")
    except FileNotFoundError:
        raise
    except (OSError, DamagedFileError) as error:
        raise InputError(
            f"{folder / 'card.json'}: damaged ({error}); remove {folder}, and the supernet is "
            "trained again"
        ) from None
    return cast(SupernetCard, card)


def _forget_statistics(model: nn.Module) -> None:
    """Let batch norm know nothing but the batch that it is shown."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def _heads(envelope: Envelope, num_classes: int) -> dict[str, nn.Module]:
    whole, heads = envelope.whole.model_copy(update={"num_classes": num_classes}), {}
    for count in envelope.num_stages:
        cut = {"stages": whole.stages[:count], "shrinks": whole.shrinks[: count - 1]}
        heads[str(count)] = NormLinear(whole.model_copy(update=cut))
    return {**heads}


Axes = dict[int, Tensor]
"""By axis, the places that a member has of it; of other axes it has the leading ones."""


def _indices(member: LevitModel, elastic: Elastic) -> dict[str, Axes]:
    """The layers in which what a member has is not in one piece, by name."""
    found: dict[str, Axes] = {}
    device = next(elastic.parameters()).device
    for name, block in member.named_modules():
        if not isinstance(block, Attention | ShrinkAttention):
            continue
        whole = cast(Attention | ShrinkAttention, elastic.get_submodule(name))
        # Channels of a head's queries, keys and values.
        own, most = ((c.key_dim, c.key_dim, c.value_dim) for c in (block.core, whole.core))
        layers: dict[str, tuple[tuple[int, ...], int]] = {"projection": ((2,), 1)}
        if isinstance(block, Attention):
            layers["qkv"] = ((0, 1, 2), 0)
        else:
            layers |= {"query": ((0,), 0), "key_value": ((1, 2), 0)}
        for layer, (parts, axis) in layers.items():
            widths = tuple(own[p] for p in parts), tuple(most[p] for p in parts)
            places = _places(block.core.num_heads, *widths)
            if places is None:
                continue
            found[f"{name}.{layer}.linear"] = {axis: places.to(device)}
            if axis == 0:
                found[f"{name}.{layer}.norm"] = {0: places.to(device)}
    return found


@lru_cache(maxsize=4096)
def _places(heads: int, own: tuple[int, ...], most: tuple[int, ...]) -> Tensor | None:
    """Where the leading channels of each part of the leading heads lie; None for one piece."""
    if own == most:
        return None
    starts = [sum(most[:part]) for part in range(len(most))]
    in_head = torch.cat(
        [start + torch.arange(width) for start, width in zip(starts, own, strict=True)]
    )
    return (torch.arange(heads)[:, None] * sum(most) + in_head).flatten()


def _leading(tensor: Tensor, shape: torch.Size, axes: Axes) -> Tensor:
    for axis, size in enumerate(shape):
        if axis not in axes or axis >= tensor.ndim:
            tensor = tensor.narrow(axis, 0, size)
    for axis, places in axes.items():
        if axis < tensor.ndim:
            tensor = tensor.index_select(axis, places)
    return tensor
