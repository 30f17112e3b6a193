"""What descriptions of every family share."""

import hashlib
import json
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from levit_search.configuration import Frozen, write_yaml

Activation = Literal["hardswish", "gelu", "relu", "silu"]
AttentionActivation = Literal["none", "hardswish", "gelu", "relu", "silu"]
DropPath = Annotated[float, Field(ge=0, lt=1), AfterValidator(abs)]  # -0.0 is 0.0


class Network(Frozen):
    """A network as plain data: equal descriptions have equal dumps, and equal dumps equal ids."""

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of a hash over the whole canonical dump."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """The canonical YAML, which :func:`parse` reads back to an equal network."""
        return write_yaml(self.model_dump(mode="json"))
