"""Networks of timm to compare with: ``timm/NAME``, or ``timm/NAME@SIZE`` for images of SIZE pixels,
such as ``@224`` or, rows first, ``@160x224``.

They are counted by fvcore under this project's convention: one multiply-add is one FLOP, the
softmax counts once for each element, norms do not count. What fvcore cannot count is named.
"""

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.configuration import Frozen
from levit_search.cost import Cost, LayerCost
from levit_search.errors import InputError, TrialError, UnknownNameError, first_line, in_one_line
from levit_search.files import check_no_zip_bomb, file_digest
from levit_search.image_size import Sides, compact, image_shape, read_size, sides, size_text

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm/"

_MOST_PIXELS = 4096


@dataclass(frozen=True)
class Baseline:
    """A timm network, with or without a pretrained tag in its name, for images of one size."""

    name: str
    image_size: int | Sides
    in_channels: int
    num_classes: int
    """0 where timm's default has no classifier; features come out then."""

    @property
    def id(self) -> str:
        """Fit for a file's name: ``timm-resnet18-224``; channels and classes follow if unusual."""
        ends = (self.in_channels, self.num_classes)
        others = "" if ends == (3, 1000) else f"-{ends[0]}-{ends[1]}"
        return f"timm-{self.name}-{size_text(self.image_size)}{others}"

    def build(self) -> "nn.Module":
        """The network with fresh weights, its attention written as matmul and softmax.

        timm's fused attention is one operator, which hides both products from counting.
        """
        return _unfused(self.build_as_timm_does())

    def build_as_timm_does(self) -> "nn.Module":
        """The network with fresh weights and, where torch has it, fused attention."""
        import timm

        model: nn.Module = timm.create_model(self.name, pretrained=False, **self._options())
        return model

    def build_to_train(self, weights: str) -> "nn.Module":
        """The network as timm builds it, with the weights that training begins with.

        Args:
            weights: ``fresh``; ``pretrained``, timm's; or the path of a checkpoint of the network.
                The classifier of the last two is a new one where it is for other classes, and
                their first convolution is adapted to other channels, as timm does.

        Raises:
            InputError: the weights are not to be had, or do not fit.
        """
        import timm

        if weights == "pretrained":
            try:
                model: nn.Module = timm.create_model(self.name, pretrained=True, **self._options())
            except Exception as error:  # the hub's client raises kinds of its own
                reason = first_line(error)
                raise InputError(f"its pretrained weights are not to be had ({reason})") from error
            return model
        model = self.build_as_timm_does()
        if weights != "fresh":
            where = f"{PREFIX}{self.name}"
            load_checkpoint(model, Path(weights), where, new_classifier=True)
        return model

    def _options(self) -> dict[str, Any]:
        """What timm has to be told of the images and classes, where they are not its own."""
        from timm.models import get_pretrained_cfg

        # timm's own rule: the configurations marked so take img_size, the others any image.
        sized = get_pretrained_cfg(self.name).fixed_input_size
        options = {"img_size": self.image_size} if sized else {}
        channels, _, _, classes = _defaults(self.name)
        if (self.in_channels, self.num_classes) != (channels, classes):
            options |= {"in_chans": self.in_channels, "num_classes": self.num_classes}
        return options

    def images(self, batch_size: int = 1) -> "Tensor":
        """Blank images [batch_size, in_channels, height, width]."""
        import torch

        return torch.zeros(batch_size, *image_shape(self))


def _unfused(model: "nn.Module") -> "nn.Module":
    """The same with attention written as matmul and softmax."""
    module: Any
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


class BaselineConfig(Frozen):
    """A network of timm that a search is compared with; a text is its ``name`` alone.

    ``name`` is ``timm/NAME``; ``timm/NAME@SIZE`` insists on the size of the data's images, such as
    ``@64`` or, rows first, ``@64x96``.
    ``weights`` is what its training begins with: ``fresh``, ``pretrained`` (timm's) or the path of
    a checkpoint of it.
    """

    name: str
    weights: Annotated[str, Field(min_length=1)] = "fresh"

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        side = "[1-9][0-9]{0,3}"
        if not re.fullmatch(rf"{PREFIX}[A-Za-z0-9_.-]{{1,100}}(@{side}(x{side})?)?", name):
            raise ValueError(
                f"expected {PREFIX}NAME or {PREFIX}NAME@SIZE, such as {PREFIX}resnet10t, not "
                f"{name[:80]!r}"
            )
        return name

    @property
    def id(self) -> str:
        """What its results go by within a study, fit for a file's name: ``timm-resnet10t``."""
        plain = self.name.partition("@")[0].replace("/", "-")
        if self.weights in ("fresh", "pretrained"):
            return plain if self.weights == "fresh" else f"{plain}-pretrained"
        digest = hashlib.sha256(self.weights.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{plain}-{digest[:8]}"

    def weights_sha256(self) -> str | None:
        """The SHA-256 of its file of weights; None where it has none, or that is gone."""
        path = Path(self.weights)
        if self.weights in ("fresh", "pretrained") or not path.is_file():
            return None
        return file_digest(path)

    def has_changed(self, before: str | None) -> bool:
        """Whether its file of weights is another one than that of a digest."""
        now = self.weights_sha256()
        return before is not None and now is not None and before != now

    def summary(self) -> str:
        """Its name and, if they are not fresh, its weights: ``timm/resnet10t (pretrained)``."""
        plain = self.name.partition("@")[0]
        return plain if self.weights == "fresh" else f"{plain} ({Path(self.weights).name})"

    def network(self, image_size: int | Sides, in_channels: int, num_classes: int) -> Baseline:
        """The network for the images and classes of a data set.

        Raises:
            UnknownNameError: timm has no such network, or the network no such pretrained tag.
            InputError: it is asked for with images of another size.
        """
        text, _, size = self.name.partition("@")
        if size and read_size(size, self.name) != image_size:
            raise InputError(
                f"{self.name}: the data's images have {size_text(image_size)} px, and networks are "
                f"compared on the same ones; write {text}"
            )
        name = text.removeprefix(PREFIX)
        _defaults(name)
        return Baseline(name, image_size, in_channels, num_classes)

    def check(self, image_size: int | Sides, in_channels: int, num_classes: int) -> None:
        """Make sure, before anything long begins, that the network can be trained on a data set.

        Pretrained weights are not fetched for this; those in a file are read.

        Raises:
            UnknownNameError: as :meth:`network`.
            InputError: as :meth:`network`, or the network does not take such images, or its weights
                are not there or do not fit.
        """
        from timm.models import get_pretrained_cfg

        network = self.network(image_size, in_channels, num_classes)
        size = size_text(image_size)
        check_runs(network, f"{self.name}: the network takes no images of {size} px")
        if self.weights == "pretrained":
            if not get_pretrained_cfg(network.name).has_weights:
                raise InputError(
                    f"{self.name}: timm has no pretrained weights for it; weights: fresh or a file"
                )
        elif self.weights != "fresh":
            network.build_to_train(self.weights)


def load(text: str) -> Baseline:
    """The network that ``timm/NAME`` or ``timm/NAME@SIZE`` names.

    Without SIZE its images have the network's own default size. For another size it is built and
    run once, since only that tells whether it takes the size.

    Raises:
        UnknownNameError: timm has no such network, or the network no such pretrained tag.
        InputError: the size is no number, or the network cannot take it.
    """
    name, at, size = text.removeprefix(PREFIX).partition("@")
    channels, height, width, classes = _defaults(name)
    own = compact(height, width)
    if not at:
        return Baseline(name, own, channels, classes)
    try:
        given = read_size(size, text)
    except InputError:
        given = 0
    if not all(0 < side <= _MOST_PIXELS for side in sides(given)):
        raise InputError(
            f"{text}: expected a size of 1 to {_MOST_PIXELS} pixels after @, such as "
            f"{PREFIX}{name}@224 or, rows first, @160x224"
        )
    baseline = Baseline(name, given, channels, classes)
    if given != own:
        check_runs(baseline, f"{text}: the network takes no images of {size_text(given)} px")
    return baseline


def load_network(text: str) -> Architecture | Baseline:
    """A network of ours by its published name or its YAML file, or one of timm's by ``timm/NAME``.

    Raises:
        InputError: there is no such thing.
    """
    return load(text) if text.startswith(PREFIX) else architectures.load(text)


def load_checkpoint(
    network: "nn.Module", path: Path, where: str, *, new_classifier: bool = False
) -> None:
    """Load a file of one of timm's networks into the same network, in place.

    A first convolution for three channels is adapted to other channels, as timm does. The file may
    lack the counts of batches in batch norms, as those of old releases of torch do.

    Args:
        network: of timm's; where it has no classifier, the file's is left out.
        where: what messages begin with: whose weights these are.
        new_classifier: whether a classifier that the file lacks, or has for other classes, keeps
            the values that it has in ``network``.

    Raises:
        InputError: the file cannot be read, a tensor is missing or unexpected, or its shape is not
            the network's; the message names the tensor and the shapes.
    """
    import timm.models
    from torch import Tensor

    state, own = read_checkpoint(path, where), network.state_dict()

    def misfit(told: str) -> InputError:
        expected = "expected the weights of this network, built with the same options"
        return InputError(f"{where}: {path}: {told}; {expected}")

    for name, found in state.items():
        if not isinstance(found, Tensor):
            raise misfit(f"has {type(found).__name__} as {name}, no tensor")
    for name in (f"{conv}.weight" for conv in described_modules(network, "first_conv")):
        found = state.get(name)
        if name not in own or found is None or found.ndim != 4:
            continue
        if found.shape[1] == 3 != own[name].shape[1]:
            state[name] = timm.models.adapt_input_conv(own[name].shape[1], found)
    classifiers = described_modules(network, "classifier")
    may_stay = {f"{name}.{part}" for name in classifiers for part in ("weight", "bias")}
    for name, tensor in own.items():
        found = state.get(name)
        if found is not None and found.shape == tensor.shape:
            continue
        is_count = found is None and name.endswith("num_batches_tracked")
        if is_count or (new_classifier and name in may_stay):
            state[name] = tensor
            continue
        told = "lacks" if found is None else f"has {list(found.shape)} as"
        raise misfit(f"{told} {name}, which is {list(tensor.shape)} in the network")
    # Without its classifier a network lacks what belongs to that as well, such as a norm before it.
    left_out = {name.split(".")[0] for name in classifiers if f"{name}.weight" not in own}
    for name, found in state.items():
        if name not in own and name.split(".")[0] not in left_out:
            raise misfit(f"has {name} {list(found.shape)}, and the network has no such tensor")
    try:
        network.load_state_dict({name: state[name] for name in own})
    except RuntimeError as error:  # tensors of kinds that cannot be copied, such as sparse ones
        raise misfit(f"does not fit ({in_one_line(error)})") from error


def read_checkpoint(path: Path, where: str) -> dict[str, Any]:
    """What a file of torch or safetensors holds by name; nothing in it is run.

    Raises:
        InputError: it cannot be read, is damaged, or holds something else.
    """
    import timm.models

    try:
        check_no_zip_bomb(path)
        return dict(timm.models.load_state_dict(str(path), device="cpu", weights_only=True))
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own kinds
        reason = in_one_line(error)
        raise InputError(f"{where}: {path}: is no readable checkpoint ({reason})") from error


def described_modules(network: "nn.Module", kind: str) -> tuple[str, ...]:
    """The names of the modules that timm calls a network's ``classifier`` or ``first_conv``."""
    described: Any = getattr(network, "pretrained_cfg", None) or {}
    names = described.get(kind) or ()
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True)
class BaselineCost:
    """What fvcore counts for one image, and what it does not."""

    total: Cost
    layers: list[LayerCost]
    """They add up to ``total``. A module that works itself, beside calling others, has a layer for
    each operator (``blocks.0.attn.matmul``) and each parameter (``pos_embed``) of its own."""
    unsupported: dict[str, int]
    """How often each operator occurs that is in ``total`` with nothing."""
    left_out: dict[str, int]
    """FLOPs of norms by operator, in fvcore's estimate, which are not in ``total``."""


def count(baseline: Baseline) -> BaselineCost:
    """Parameters, FLOPs and activations of a baseline for one image."""
    return count_module(baseline.build(), baseline.images())


def count_module(model: "nn.Module", images: "Tensor") -> BaselineCost:
    """The same for any module and the images [1, C, H, W] that it takes; it is left evaluating."""
    import torch

    with warnings.catch_warnings():
        # fvcore scripts a loss of its own when it is imported; torch says that scripting will go.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
        from fvcore.nn import jit_handles as handles

    # What multiplies, the softmax and norms. Pooling and resizing do not count here, and without a
    # handle fvcore names them among the unsupported.
    flop_handles: dict[str, Handle] = {
        "aten::_convolution": handles.conv_flop_jit,
        "aten::_convolution_mode": _padded_convolution_flops,
        "aten::linear": handles.linear_flop_jit,
        "aten::addmm": handles.addmm_flop_jit,
        "aten::einsum": _einsum_flops,
        "aten::matmul": _product_flops,
        "aten::bmm": _product_flops,
        "aten::mm": _product_flops,
        "aten::softmax": handles.generic_activation_jit(),
        "aten::scaled_dot_product_attention": _attention_flops,
        "aten::batch_norm": handles.batchnorm_flop_jit,
        "aten::layer_norm": handles.norm_flop_counter(2),
        "aten::group_norm": handles.norm_flop_counter(2),
        "aten::instance_norm": handles.norm_flop_counter(1),
    }
    activation_handles: dict[str, Handle] = {  # what fvcore's own leave out of the products
        "aten::mm": handles.generic_activation_jit(),
        "aten::_convolution_mode": handles.generic_activation_jit("conv"),
        "aten::scaled_dot_product_attention": _attention_activations,
    }
    model.eval()
    with torch.no_grad():
        flops = FlopCountAnalysis(model, (images,)).clear_op_handles()
        flops.set_op_handle(**flop_handles).tracer_warnings("none")
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
        activations = ActivationCountAnalysis(model, (images,)).tracer_warnings("none")
        activations.set_op_handle(**activation_handles)
        activations.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    by_operator = flops.by_operator()
    left_out = {norm: int(by_operator[norm]) for norm in _NORMS if norm in by_operator}
    counts = [each.by_module_and_operator() for each in (flops, activations)]
    params = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return BaselineCost(
        Cost(
            params=sum(params.values()),
            flops=int(flops.total()) - sum(left_out.values()),
            activations=int(activations.total()),
        ),
        _layers("", model, counts, params),
        dict(flops.unsupported_ops().most_common()),
        left_out,
    )


def _layers(
    name: str,
    module: "nn.Module",
    counts: list[dict[str, Counter[str]]],
    sizes: dict[str, int],
) -> list[LayerCost]:
    """The layers of a module: its children's, and its own parameters and operators.

    Args:
        counts: fvcore's FLOPs and activations by module and operator, each with all below it.
        sizes: of parameters by name.
    """
    prefix = f"{name}." if name else ""
    # A module that stands in two places is counted where it comes first.
    children = {
        prefix + child: below
        for child, below in module.named_children()
        if prefix + child in counts[0]
    }
    within = [layer for child in children.items() for layer in _layers(*child, counts, sizes)]
    own_names = (prefix + own for own, _ in module.named_parameters(recurse=False))
    params = {own: sizes[own] for own in own_names if own in sizes}

    def without_children(count: dict[str, Counter[str]]) -> Counter[str]:
        left, *below = (
            Counter({operator: int(times) for operator, times in count[place].items()})
            for place in (name, *children)
        )
        for child in below:
            left.subtract(child)
        return left

    flops, activations = map(without_children, counts)
    for norm in _NORMS:
        flops.pop(norm, None)
    if not within and name:
        own = LayerCost(name, sum(params.values()), sum(flops.values()), sum(activations.values()))
        return [own] if any(own[1:]) else []
    operators = [
        LayerCost(prefix + operator, 0, flops[operator], activations[operator])
        for operator in {**flops, **activations}
        if flops[operator] or activations[operator]
    ]
    own_params = [LayerCost(parameter, size, 0, 0) for parameter, size in params.items()]
    return own_params + within + operators


def export_onnx(
    baseline: Baseline, path: Path, batch_size: int, trained: "nn.Module | None" = None
) -> None:
    """Write a baseline as ONNX with input ``images`` and output ``logits``.

    Args:
        baseline: the network; the exporter folds the batch norms that follow a convolution.
        batch_size: images in one run, fixed in the graph.
        trained: its module, which is used up by this; None has fresh weights.

    Raises:
        TrialError: the exporter cannot write it.
    """
    from torch.onnx import OnnxExporterError

    from levit_search.model import write_graph

    model = baseline.build() if trained is None else _unfused(trained.cpu())
    try:
        write_graph(model, {"images": baseline.images(batch_size)}, "logits", path)
    except OnnxExporterError as error:
        raise TrialError(f"{baseline.id} cannot be written as ONNX: {first_line(error)}") from error


def _defaults(name: str) -> tuple[int, int, int, int]:
    """Channels, height, width and classes that timm gives a network."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        raise UnknownNameError("timm network", name, timm.list_models())
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UnknownNameError(f"pretrained tag of {PREFIX}{architecture}", tag, tags)
    defaults = get_pretrained_cfg(name)
    channels, height, width = defaults.input_size
    return channels, height, width, defaults.num_classes


def check_runs(baseline: Baseline, refusal: str) -> None:
    """Build and run the network once, since only that tells whether it takes its images.

    Raises:
        InputError: ``refusal`` and the network's own reason.
    """
    import torch

    try:
        with torch.no_grad():
            baseline.build().eval()(baseline.images())
    except (RuntimeError, AssertionError, ValueError, IndexError, ArithmeticError) as error:
        # What timm's networks raise for images that they cannot cut up or pool.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{refusal} ({reason or type(error).__name__})") from error


Handle = Callable[[list[Any], list[Any]], Any]

_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm")


def _padded_convolution_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """A convolution whose padding is a word; fvcore knows those with numbers only."""
    weights = math.prod(_shape(inputs[1])[1:])
    return Counter(conv=math.prod(_shape(outputs[0])) * weights)


def _product_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore's own takes the first factor's shape, which is too small where it is broadcast."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _einsum_flops(inputs: list[Any], outputs: list[Any]) -> Any:
    """Of two factors, exactly; fvcore reads most figures off a text, to a few digits."""
    from fvcore.nn.jit_handles import einsum_flop_jit

    factors = inputs[0].toIValue().replace(" ", "").partition("->")[0].split(",")
    if len(factors) != 2 or not all(factor.isalpha() for factor in factors):
        return einsum_flop_jit(inputs, outputs)
    sizes: dict[str, int] = {}
    for letters, value in zip(factors, inputs[1].node().inputs(), strict=True):
        sizes |= zip(letters, _shape(value), strict=True)
    return math.prod(sizes.values())


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Q K^T with its softmax and A V, for modules whose fused attention cannot be switched off."""
    del outputs
    q_bhne, k_bhme, v_bhmd = (_shape(value) for value in inputs[:3])
    attention_map = math.prod(q_bhne[:-1]) * k_bhme[-2]
    return attention_map * (q_bhne[-1] + 1 + v_bhmd[-1])


def _attention_activations(inputs: list[Any], outputs: list[Any]) -> int:
    q_bhne, k_bhme = (_shape(value) for value in inputs[:2])
    return math.prod(q_bhne[:-1]) * k_bhme[-2] + math.prod(_shape(outputs[0]))


def _shape(value: Any) -> list[int]:
    shape: list[int] = value.type().sizes()
    return shape
