"""What descriptions of every family share."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from levit_search.configuration import Frozen, canonical_id, write_yaml

Activation = Literal["hardswish", "gelu", "relu", "silu"]
AttentionActivation = Literal["none", "hardswish", "gelu", "relu", "silu"]
DropPath = Annotated[float, Field(ge=0, lt=1), AfterValidator(abs)]  # -0.0 is 0.0


class Network(Frozen):
    """A network as plain data: equal descriptions have equal dumps, and equal dumps equal ids."""

    @cached_property
    def id(self) -> str:
        """See :func:`levit_search.configuration.canonical_id`."""
        return canonical_id(self)

    def to_yaml(self) -> str:
        """The canonical YAML, which :func:`parse` reads back to an equal network."""
        return write_yaml(self.model_dump(mode="json"))
