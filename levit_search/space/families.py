"""What a space has to know of each family beyond the fields of its models."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, get_args

from pydantic.fields import FieldInfo

from levit_search.architecture import ConvStem, Donor, Graft, Levit, ResNetStem
from levit_search.architecture import resnet as resnets
from levit_search.configuration import Count
from levit_search.errors import InputError
from levit_search.space.slots import Slot, at, options

_COUNT: Any = Count


class Family(Protocol):
    """A family as one compiled template uses it; slots that others make meaningless are ignored."""

    model: type[Levit] | type[Graft]

    extra_fields: Mapping[str, FieldInfo]
    """What a template may say and a network does not, by path."""

    controls: tuple[str, ...]
    """Paths of the counts that decide whether other slots are used."""

    def check(self, where: str) -> None:
        """Refuse what is wrong with the template as a whole.

        Raises:
            InputError: naming ``where`` and the key.
        """

    def is_used(self, path: str, counts: Mapping[str, Any]) -> bool:
        """Whether a slot means anything, given the ``controls`` that the template has."""

    def described(self, data: dict[str, Any]) -> dict[str, Any]:
        """A filled template as the description of a network, without what is not used."""

    def spelt(self, network: Any) -> dict[str, Any]:
        """The dump of a network of this family, spelt as templates may spell it."""

    def donors(self) -> set[str]:
        """The ResNets that networks of the space may begin with."""


class LevitFamily:
    """Stages beyond ``num_stages``, and the shrinking blocks before them, are ignored."""

    model: type[Levit] | type[Graft] = Levit
    extra_fields: Mapping[str, FieldInfo] = {
        "num_stages": FieldInfo(annotation=_COUNT),
        "stem.layers": FieldInfo(annotation=_COUNT),
    }
    controls: tuple[str, ...] = ("num_stages",)

    def __init__(self, skeleton: dict[str, Any]) -> None:
        self._skeleton = skeleton

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

    def is_used(self, path: str, counts: Mapping[str, Any]) -> bool:
        head, *rest = path.split(".")
        if head not in ("stages", "shrinks") or not rest or "num_stages" not in counts:
            return True
        return bool(int(rest[0]) < counts["num_stages"] - (head == "shrinks"))

    def described(self, data: dict[str, Any]) -> dict[str, Any]:
        count = data.pop("num_stages", len(data["stages"]))
        data["stages"] = data["stages"][:count]
        if isinstance(data.get("shrinks"), list):
            data["shrinks"] = data["shrinks"][: count - 1]
        return data

    def spelt(self, network: Levit) -> dict[str, Any]:
        data = network.model_dump(mode="json")
        data["num_stages"] = len(network.stages)
        stem = network.stem
        if isinstance(stem, ConvStem):
            data["stem"]["layers"] = len(stem.channels)
        elif isinstance(stem, ResNetStem) and stem.stages is not None:
            data["stem"]["layers"] = resnets.layers_until(stem.kind, stem.stages)
        return data

    def donors(self) -> set[str]:
        stems = options(self._skeleton.get("stem"))
        kinds = {kind for stem in stems for kind in options(at(stem, "kind"))}
        return kinds & {*get_args(resnets.ResNetName)}


class GraftFamily:
    """Without stages the donor's other slots are ignored, without layers the trunk's and the grid.

    One exception: where the template gives no grid, a donor's stem decides it even without stages.
    """

    model: type[Levit] | type[Graft] = Graft
    extra_fields: Mapping[str, FieldInfo] = {}
    controls: tuple[str, ...] = ("donor.stages", "trunk.depth")

    def __init__(self, skeleton: dict[str, Any]) -> None:
        self._skeleton = skeleton
        self._has_grid = None not in options(skeleton.get("grid"))

    def check(self, where: str) -> None:
        for part, count in (("donor", "stages"), ("trunk", "depth")):
            described = self._skeleton.get(part, {})
            if described is not None and not isinstance(described, dict | Slot):
                raise InputError(f"{where}.{part}: expected keys and values, not {described!r}")
            if isinstance(described, dict) and count not in described:
                raise InputError(f"{where}.{part}.{count}: is required (0 for no {part})")

    def is_used(self, path: str, counts: Mapping[str, Any]) -> bool:
        has_donor = counts.get("donor.stages") != 0
        has_trunk = counts.get("trunk.depth") != 0
        head, _, rest = path.partition(".")
        if head == "donor" and rest:
            return has_donor or (rest == "stem" and has_trunk and not self._has_grid)
        if head == "grid" or (head == "trunk" and rest):
            return has_trunk
        return True

    def described(self, data: dict[str, Any]) -> dict[str, Any]:
        if at(data, "trunk.depth") == 0:  # its heads need not divide a width that is not there
            data["trunk"] = None
        return data

    def spelt(self, network: Graft) -> dict[str, Any]:
        data = network.model_dump(mode="json")
        if network.donor is None:
            data["donor"] = {"stages": 0}
        if network.trunk is None:
            data["trunk"] = {"depth": 0}
            del data["grid"]
        return data

    def donors(self) -> set[str]:
        names: set[str] = set()
        default = Donor.model_fields["name"].default
        for donor in options(self._skeleton.get("donor")):
            if any(stages != 0 for stages in options(at(donor, "stages"))):
                names.update(options(donor.get("name", default)))
        return names


FAMILIES: Mapping[str, Callable[[dict[str, Any]], Family]] = {
    "levit": LevitFamily,
    "graft": GraftFamily,
}
