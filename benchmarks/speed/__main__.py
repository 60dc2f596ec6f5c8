"""``python benchmarks/speed``: see `speed.command`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # from here on, this folder is the package `speed`

from speed.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
