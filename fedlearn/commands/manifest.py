"""``fedlearn manifest``: what defines a run's protocol, as JSON on standard output."""

import json
import sys
from collections.abc import Sequence

from fedlearn.config.errors import ConfigError

USAGE = """\
usage: fedlearn manifest RUN

prints the manifest of a run's directory (or of a manifest's file) as JSON: everything that defines
its protocol, and the hash that two runs share if they put the same data in the same hands at the
same time; fedlearn run manifest=FILE repeats the protocol, and refuses to run any other
"""


def command(arguments: Sequence[str]) -> int:
    """Print a manifest and return the exit status.

    Raises:
        ConfigError: There is none.
    """
    if any(each in ("-h", "--help") for each in arguments):
        sys.stdout.write(USAGE)
        return 0
    if len(arguments) != 1:
        raise ConfigError("fedlearn manifest: takes one run's directory; see fedlearn manifest -h")
    from fedlearn.config.protocol import read_manifest

    json.dump(read_manifest(arguments[0]), sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0
