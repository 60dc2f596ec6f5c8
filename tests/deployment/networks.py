"""Network namespaces: machines with cables between them, made and removed by a test."""

import os
import shutil
import subprocess
from collections.abc import Sequence

SUBNET = "10.213.77"


def why_not() -> str | None:
    """Return why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs the program ip, of iproute2"
    made = subprocess.run(["ip", "netns", "add", "fedlearn-probe"], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "delete", "fedlearn-probe")
    return None


class Network:
    """A server and nodes, each in a namespace of its own, around a switch.

    Attributes:
        server_address: Where nodes reach the server.
    """

    def __init__(self, nodes: int) -> None:
        """Make it."""
        self.server_address = f"{SUBNET}.1"
        self._prefix = f"fl{os.getpid() % 100_000}"
        self._switch = f"{self._prefix}x"
        self._machines = ["server", *map(str, range(nodes))]
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "switch", "up")
            for place, machine in enumerate(self._machines):
                self._plug_in(machine, f"{SUBNET}.{place + 1}/24")
        except BaseException:
            self.remove()
            raise

    def within(self) -> dict[str, Sequence[str]]:
        """Return what comes before a command to run it on a machine."""
        return {machine: ["ip", "netns", "exec", self._name(machine)] for machine in self._machines}

    def cut(self, machine: str) -> None:
        """Pull out a machine's cable."""
        _ip("-n", self._switch, "link", "set", f"to-{machine}", "down")

    def mend(self, machine: str) -> None:
        """Plug it in again."""
        _ip("-n", self._switch, "link", "set", f"to-{machine}", "up")

    def remove(self) -> None:
        """Remove every namespace, and with them the cables."""
        for name in (*map(self._name, self._machines), self._switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def _name(self, machine: str) -> str:
        return f"{self._prefix}-{machine}"

    def _plug_in(self, machine: str, address: str) -> None:
        name = self._name(machine)
        _ip("netns", "add", name)
        _ip(
            *("link", "add", "cable", "netns", name, "type", "veth"),
            *("peer", "name", f"to-{machine}", "netns", self._switch),
        )
        _ip("-n", self._switch, "link", "set", f"to-{machine}", "master", "switch", "up")
        _ip("-n", name, "address", "add", address, "dev", "cable")
        _ip("-n", name, "link", "set", "cable", "up")
        _ip("-n", name, "link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
