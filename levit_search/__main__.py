"""``python -m levit_search`` is ``levit-search``."""

from levit_search.cli import main

if __name__ == "__main__":
    main()
