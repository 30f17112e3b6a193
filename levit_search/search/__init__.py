"""The search: Optuna proposes, an engine evaluates, the study folder remembers."""

from levit_search.search.callbacks import Callback, Summary
from levit_search.search.driver import search
from levit_search.search.setup import begin, checked_space
from levit_search.search.warm_start import check_source

__all__ = ["Callback", "Summary", "begin", "check_source", "checked_space", "search"]
