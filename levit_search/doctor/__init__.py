"""What ``levit-search doctor`` looks at: all that a search needs, tried out for real.

A check tells what it found, what would fail because of it and how to mend that. Each has a time
limit, and one that raises is a finding of its own.
"""

from levit_search.doctor.checks import all_checks
from levit_search.doctor.finding import Check, Finding, Status
from levit_search.doctor.round import examine

__all__ = ["Check", "Finding", "Status", "all_checks", "examine"]
