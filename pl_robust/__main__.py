"""``python -m pl_robust``: the same as the command ``pl-robust``."""

from pl_robust.cli import main

if __name__ == "__main__":
    main()
