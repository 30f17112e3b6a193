"""The leaves of a template against the models of its family, each value by itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from levit_search.configuration import describe
from levit_search.errors import InputError, did_you_mean
from levit_search.space.slots import joined, leaves, options


def check_values(
    skeleton: Mapping[str, Any],
    models: Sequence[type[BaseModel]],
    extra_fields: Mapping[str, FieldInfo],
    where: str,
) -> None:
    """Make sure that every key is a field's, and every value one that the field takes by itself.

    Args:
        skeleton: a compiled template.
        models: of the families that the template describes, each key a field of one of them.
        extra_fields: what templates may say beside the models' fields or in their place, by path.
        where: for messages.

    Raises:
        InputError: naming the place, and the nearest spelling or the value.
    """
    for path, leaf in leaves(skeleton):
        field = _field(path, models, extra_fields, where)
        if field is None:
            continue
        field_type: Any = Annotated[field.annotation, field]
        adapter: TypeAdapter[Any] = TypeAdapter(field_type)
        for value in options(leaf):
            try:
                adapter.validate_python(value)
            except ValidationError as error:
                raise InputError(f"{where}.{path}: {describe(error)}") from None


def _field(
    path: str,
    models: Sequence[type[BaseModel]],
    extra_fields: Mapping[str, FieldInfo],
    where: str,
) -> FieldInfo | None:
    """The field that a leaf fills; None where only whole models can judge."""
    place = ""
    field: FieldInfo | None = None
    is_judged = True
    for part in path.split("."):
        if part.isdigit():  # an element of a list, which the field types as a whole
            place, field = joined(place, part), None
            continue
        inside = place and f"{place}."
        extra = {
            name.removeprefix(inside): info
            for name, info in extra_fields.items()
            if name.startswith(inside) and "." not in name.removeprefix(inside)
        }
        fields = {name: info for m in models for name, info in m.model_fields.items()} | extra
        if models and part not in fields:
            hint = did_you_mean(part, fields)
            raise InputError(
                f"{joined(where, place) if place else where}: unknown key {part!r}; {hint}"
            )
        field = fields.get(part)
        place = joined(place, part)
        own = [m.model_fields[part] for m in models if part in m.model_fields]
        if part not in extra and any(info.annotation != own[0].annotation for info in own):
            is_judged = False
        models = [*_models(field.annotation)] if field else []
    return field if is_judged and len(models) < 2 else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside a type such as ``tuple[Stage, ...]`` or ``Donor | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
