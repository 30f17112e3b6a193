"""What a template may say: the fields of its families' models, each value by itself, and what a
space has to know of each family beyond them."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from levit_search import architecture as architectures
from levit_search.architecture import ConvStem, Donor, Graft, Levit, PatchStem, ResNetStem
from levit_search.architecture import resnet as resnets
from levit_search.configuration import Count, describe
from levit_search.errors import InputError, did_you_mean
from levit_search.space.slots import Slot, at, joined, leaves, options

_COUNT: Any = Count
_LEADING_CHANNELS: Any = tuple[Count, ...] | None
_STEM_KIND: Any = Literal[("conv", "patch", *get_args(resnets.ResNetName))]
_FAMILY: Any = Literal["levit", "graft"]


Template = Mapping[str, Any]
"""A compiled template, or a part of one: slots, lists, mappings and values by key."""


class Family(abc.ABC):
    """A family as one compiled template uses it; slots that others make meaningless are ignored."""

    models: tuple[type[Levit] | type[Graft], ...]
    """Of its networks; several where the template is of several families."""

    extra_fields: Mapping[str, FieldInfo] = {}
    """What a template may say beside what a network does, or in its place, by path."""

    controls: tuple[str, ...]
    """Paths of the counts and names that decide whether other slots are used."""

    def __init__(self, skeleton: Template) -> None:
        self._skeleton = skeleton

    @abc.abstractmethod
    def check(self, where: str) -> None:
        """Refuse what is wrong with the template as a whole.

        Raises:
            InputError: naming ``where`` and the key.
        """

    @abc.abstractmethod
    def is_used(self, path: str, counts: Mapping[str, Any]) -> bool:
        """Whether a slot means anything, given the values of the ``controls`` in the template."""

    @abc.abstractmethod
    def described(self, data: Template) -> Template:
        """A filled template as the description of a network, without what is not used."""

    @abc.abstractmethod
    def spelt(self, network: Any) -> Template:
        """The dump of a network of this family, spelt as templates may spell it."""

    @abc.abstractmethod
    def donors(self) -> set[str]:
        """The ResNets that networks of the space may begin with."""


class LevitFamily(Family):
    """Stages beyond ``num_stages``, and the shrinking blocks before them, are ignored.

    Where ``stem.kind`` varies, so are the keys of a stem that the kind does not take; ``layers``
    are those of a ResNet, too, unless the template gives ``stages``.
    """

    models = (Levit,)
    extra_fields: Mapping[str, FieldInfo] = {
        "num_stages": FieldInfo(annotation=_COUNT),
        "stem.kind": FieldInfo(annotation=_STEM_KIND),
        "stem.layers": FieldInfo(annotation=_COUNT),
        "stem.channels": FieldInfo(annotation=_LEADING_CHANNELS),
    }
    controls = ("num_stages", "stem.kind")

    def __init__(self, skeleton: Template) -> None:
        super().__init__(skeleton)
        kind = at(skeleton, "stem.kind")
        self._stem_kinds = kind.values if isinstance(kind, Slot) else ()

    def check(self, where: str) -> None:
        stages, shrinks = self._skeleton.get("stages"), self._skeleton.get("shrinks")
        if not isinstance(stages, list) or not stages:
            raise InputError(f"{where}.stages: a list of stages is required")
        if shrinks is not None and not isinstance(shrinks, list | Slot):
            raise InputError(f"{where}.shrinks: expected a list of shrinking blocks")
        if isinstance(shrinks, list) and len(shrinks) > len(stages) - 1:
            raise InputError(
                f"{where}.shrinks: {len(shrinks)} shrinking blocks, but only "
                f"{len(stages) - 1} lie between the stages"
            )
        count = self._skeleton.get("num_stages", len(stages))
        if not isinstance(count, Slot | int):
            raise InputError(
                f"{where}.num_stages: expected a number or {{choices: [...]}}, not {count!r}"
            )
        for value in options(count):
            if value > len(stages):
                raise InputError(
                    f"{where}.num_stages: {value} stages, but only {len(stages)} are described"
                )
        # Of a stem whose kind varies each kind has its keys, and each key its kind.
        taken = {kind: self._stem_keys(kind) for kind in self._stem_kinds}
        given: Template = self._skeleton["stem"] if taken else {}
        for key in given:
            if not any(key in keys for keys in taken.values()):
                by_stages = "; a ResNet that is cut by stages is not by layers" * (key == "layers")
                raise InputError(
                    f"{where}.stem.{key}: is taken by none of the kinds {', '.join(taken)}"
                    f"{by_stages}"
                )
        for kind, keys in taken.items():
            needed = keys & {"channels", "layers", "patch_size", "stages"}
            if not needed & given.keys():
                raise InputError(
                    f"{where}.stem: {' or '.join(sorted(needed))} is required for the kind {kind}"
                )

    def _stem_keys(self, kind: str) -> set[str]:
        """What a stem of a kind takes."""
        if kind == "conv":
            return {*ConvStem.model_fields, "layers"}
        if kind == "patch":
            return {*PatchStem.model_fields}
        is_cut_by_layers = self._skeleton["stem"].get("stages") is None
        return {*ResNetStem.model_fields} - {"stages" if is_cut_by_layers else "layers"}

    def is_used(self, path: str, counts: Mapping[str, Any]) -> bool:
        head, *rest = path.split(".")
        if head == "stem" and rest and self._stem_kinds:
            return rest[0] in self._stem_keys(counts["stem.kind"])
        if head not in ("stages", "shrinks") or not rest or "num_stages" not in counts:
            return True
        return bool(int(rest[0]) < counts["num_stages"] - (head == "shrinks"))

    def described(self, data: Template) -> Template:
        count = data.get("num_stages", len(data["stages"]))
        found = {key: value for key, value in data.items() if key != "num_stages"}
        found["stages"] = data["stages"][:count]
        if isinstance(data.get("shrinks"), list):
            found["shrinks"] = data["shrinks"][: count - 1]
        if self._stem_kinds:
            taken = self._stem_keys(data["stem"]["kind"])
            found["stem"] = {key: value for key, value in data["stem"].items() if key in taken}
        return found

    def spelt(self, network: Levit) -> Template:
        data = {**network.model_dump(mode="json"), "num_stages": len(network.stages)}
        stem = network.stem
        if isinstance(stem, ConvStem):
            data["stem"]["layers"] = len(stem.channels)
        elif isinstance(stem, ResNetStem):
            data["stem"] |= {"stem": stem.stem, "width_scale": stem.width_scale}
            if stem.stages is not None:
                data["stem"]["layers"] = resnets.layers_until(stem.kind, stem.stages)
        return data

    def donors(self) -> set[str]:
        stems = options(self._skeleton.get("stem"))
        kinds = {kind for stem in stems for kind in options(at(stem, "kind"))}
        return kinds & {*get_args(resnets.ResNetName)}


class GraftFamily(Family):
    """Without stages the donor's other slots are ignored, without layers the trunk's and the grid.

    One exception: where the template gives no grid, a donor's stem decides it even without stages.
    """

    models = (Graft,)
    controls = ("donor.stages", "trunk.depth")

    def __init__(self, skeleton: Template) -> None:
        super().__init__(skeleton)
        self._grids = options(skeleton.get("grid"))

    def check(self, where: str) -> None:
        for part, count in (("donor", "stages"), ("trunk", "depth")):
            described = self._skeleton.get(part, {})
            if described is not None and not isinstance(described, dict | Slot):
                raise InputError(f"{where}.{part}: expected keys and values, not {described!r}")
            if isinstance(described, dict) and count not in described:
                raise InputError(f"{where}.{part}.{count}: is required (0 for no {part})")

    def is_used(self, path: str, counts: Mapping[str, Any]) -> bool:
        if path in self.controls:  # none at all is a choice as well
            return True
        has_donor = counts.get("donor.stages") != 0
        has_trunk = counts.get("trunk.depth") != 0
        head, _, rest = path.partition(".")
        if head == "donor" and rest:
            return has_donor or (rest == "stem" and has_trunk and None in self._grids)
        if head == "grid" or (head == "trunk" and rest):
            return has_trunk
        return True

    def described(self, data: Template) -> Template:
        # Without layers its heads need not divide a width that is not there.
        return {**data, "trunk": None} if at(data, "trunk.depth") == 0 else data

    def spelt(self, network: Graft) -> Template:
        data = network.model_dump(mode="json")
        if network.donor is None:
            data["donor"] = {"stages": 0}
        if network.trunk is None:
            data["trunk"] = {"depth": 0}
            del data["grid"]
        elif isinstance(network.grid, tuple) and list(network.grid) not in self._grids:
            data["grid"] = min(network.grid)  # by the shorter side, as a template may give it
        return data

    def donors(self) -> set[str]:
        names: set[str] = set()
        default = Donor.model_fields["name"].default
        for donor in options(self._skeleton.get("donor")):
            if any(stages != 0 for stages in options(at(donor, "stages"))):
                names.update(options(donor.get("name", default)))
        return names


class BothFamilies(Family):
    """The keys of LeViTs and grafts side by side; those of the other family are ignored."""

    models = (Levit, Graft)
    extra_fields: Mapping[str, FieldInfo] = {
        "family": FieldInfo(annotation=_FAMILY),
        **LevitFamily.extra_fields,
    }
    controls = ("family", *LevitFamily.controls, *GraftFamily.controls)

    def __init__(self, skeleton: Template) -> None:
        super().__init__(skeleton)
        self._families = {name: family(skeleton) for name, family in _FAMILIES.items()}

    def check(self, where: str) -> None:
        for family in self._families.values():
            family.check(where)

    def is_used(self, path: str, counts: Mapping[str, Any]) -> bool:
        family = self._families[counts["family"]]
        return _is_key_of(family, path) and family.is_used(path, counts)

    def described(self, data: Template) -> Template:
        family = self._families[data["family"]]
        return family.described({key: v for key, v in data.items() if _is_key_of(family, key)})

    def spelt(self, network: Levit | Graft) -> Template:
        return self._families[network.family].spelt(network)

    def donors(self) -> set[str]:
        return set().union(*(family.donors() for family in self._families.values()))


def _is_key_of(family: Family, path: str) -> bool:
    head = path.partition(".")[0]
    return head in family.extra_fields or any(head in m.model_fields for m in family.models)


_FAMILIES: Mapping[str, type[Family]] = {"levit": LevitFamily, "graft": GraftFamily}


def family_for(skeleton: Template, where: str) -> Family:
    """What a space has to know of the family that a compiled template names, or of both.

    Raises:
        InputError: there is no such family.
    """
    names = options(skeleton.get("family", "levit"))
    for name in names:
        architectures.family_of({"family": name}, where)
    return BothFamilies(skeleton) if len(names) > 1 else _FAMILIES[names[0]](skeleton)


def check_values(skeleton: Template, family: Family, where: str) -> None:
    """Make sure that every key is a field's, and every value one that the field takes by itself.

    Args:
        family: its own, each key a field of one of its models or one of its extra fields.

    Raises:
        InputError: naming the place, and the nearest spelling or the value.
    """
    for path, leaf in leaves(skeleton):
        field = _field(path, family, where)
        if field is None:
            continue
        field_type: Any = Annotated[field.annotation, field]
        adapter: TypeAdapter[Any] = TypeAdapter(field_type)
        for value in options(leaf):
            try:
                adapter.validate_python(value)
            except ValidationError as error:
                raise InputError(f"{where}.{path}: {describe(error)}") from None


def _field(path: str, family: Family, where: str) -> FieldInfo | None:
    """The field that a leaf fills; None where only whole models can judge."""
    models: Sequence[type[BaseModel]] = family.models
    place = ""
    field: FieldInfo | None = None
    is_judged = True
    for part in path.split("."):
        above, place = place, joined(place, part)
        if part.isdigit():  # an element of a list, which the field types as a whole
            field = None
            continue
        own = [m.model_fields[part] for m in models if part in m.model_fields]
        field = family.extra_fields.get(place, own[-1] if own else None)
        if models and field is None:
            inside = above and f"{above}."
            extra = (
                name.removeprefix(inside) for name in family.extra_fields if name.startswith(inside)
            )
            known = {name: None for m in models for name in m.model_fields}
            known |= {name: None for name in extra if "." not in name}
            hint = did_you_mean(part, known)
            raise InputError(
                f"{joined(where, above) if above else where}: unknown key {part!r}; {hint}"
            )
        if place not in family.extra_fields and any(
            each.annotation != own[0].annotation for each in own
        ):
            is_judged = False
        models = [*_models(field.annotation)] if field else []
    return field if is_judged and len(models) < 2 else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside a type such as ``tuple[Stage, ...]`` or ``Donor | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
