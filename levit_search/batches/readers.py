"""Pictures decoded by processes that stay from one epoch to the next."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from levit_search.batches.picture_views import View, chance
from levit_search.data import Pictures, SplitName
from levit_search.errors import InputError


class Request(NamedTuple):
    """One view to be made."""

    split: SplitName
    picture: int
    seed: tuple[int, ...]
    """What its random numbers depend on."""


class Readers:
    """Workers that make views of one kind; for one pass at a time.

    Args:
        pictures: the splits.
        view: from a decoded picture to uint8 [C, S, S].
        workers: processes; 0 for this one.
        is_pinned: whether batches are to be copied to a GPU.
    """

    def __init__(
        self,
        pictures: Mapping[SplitName, Pictures],
        view: View,
        workers: int,
        is_pinned: bool,
    ) -> None:
        self._requests = _Requests()
        self._loader = DataLoader(
            _Views(pictures, view),
            batch_sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collated,
            pin_memory=is_pinned,
            generator=torch.Generator(),  # keeps the loader off the process's random state
        )

    def read(self, requests: Iterable[list[Request]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, C, S, S] and labels int64 [B] of each list of requests, in order.

        Raises:
            InputError: too many pictures cannot be read.
        """
        self._requests.latest = requests
        for batch in self._loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


class _Requests:
    """What a loader asks its workers for; it is iterated over once for each pass."""

    latest: Iterable[list[Request]] = ()

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.latest)


_View = tuple[Tensor, int] | InputError
"""An error is handed on as a value: raised, it would reach the caller with a worker's traceback."""


class _Views(Dataset[_View]):
    def __init__(self, pictures: Mapping[SplitName, Pictures], view: View) -> None:
        self._pictures, self._view = pictures, view

    def __getitem__(self, request: Request) -> _View:
        pictures = self._pictures[request.split]
        try:
            picture = pictures.open(request.picture)
        except InputError as error:
            return error
        with chance(*request.seed):
            return self._view(picture), int(pictures.labels[request.picture])


def _collated(views: list[_View]) -> tuple[Tensor, Tensor] | InputError:
    from timm.data.loader import fast_collate

    error = next((view for view in views if isinstance(view, InputError)), None)
    if error is not None:
        return error
    batch: tuple[Tensor, Tensor] = fast_collate(views)
    return batch
