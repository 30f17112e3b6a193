"""Faults, injected for real: what a search must outlive, and what it must say.

A plain ``pytest`` leaves them out; ``pytest tests/faults`` runs them, ``--long`` many more times.
What they found is recorded with ``--record FILE``, and ``python -m tests.faults.table FILE`` puts
it into docs/reliability.md.
"""
