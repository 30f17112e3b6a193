"""The search: Optuna proposes, an engine evaluates, the study folder remembers."""

from levit_search.search.driver import Summary, search

__all__ = ["Summary", "search"]
