"""Engines carry evaluations out, in worker processes of this machine or on a Ray cluster."""

from typing import TYPE_CHECKING

from levit_search.architecture import Architecture
from levit_search.engine.interface import Engine, Settled
from levit_search.files import user_cache

if TYPE_CHECKING:
    from levit_search.study import Study


def make_engine(study: "Study", sample: Architecture, settled: Settled) -> Engine:
    """The engine that the study's configuration names; it begins to prepare at once.

    Args:
        study: evaluated networks' weights go into its folder.
        sample: any network of its space.
        settled: what an earlier session has settled; may be empty.

    Raises:
        InputError: there is no such cluster, it lacks what a worker claims, or there is no folder
            for caches.
    """
    user_cache()  # where there is none it is chosen here, and said, before each worker does so
    if study.config.engine.kind == "ray":
        from levit_search.engine.ray import RayEngine

        return RayEngine(study, sample, settled)
    from levit_search.engine.local import LocalEngine

    return LocalEngine(study, sample, settled)
