"""`minibaret`, and `python -m minibaret`: from here on Ctrl-C is a sentence."""

import sys

from .process import NOTHING_DONE, stopped_by_signals


def main() -> int:
    with stopped_by_signals(at_once=NOTHING_DONE):
        from . import cli
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
