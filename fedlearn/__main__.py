"""``python -m fedlearn`` is ``fedlearn``."""

import sys

from fedlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
