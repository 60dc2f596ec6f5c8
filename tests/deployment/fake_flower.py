"""Flower's grid as a deployment's server sees it, and time that goes on by sleeping alone."""

from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents


class Clock:
    """Stands for the module `time`: it goes on by sleeping, and by nothing else."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


def carried(message):
    """The message as it arrives: other objects, made from bytes."""
    contents = {key: each.deflate() for key, each in get_all_nested_objects(message).items()}
    return inflate_object_from_contents(message.object_id, contents)


def key_of(client_id):
    return b"public key %d" % client_id


def node_of(client_id):
    return 7000 - 13 * client_id  # of no order, and no client id


class FakeFlower:
    """Flower's grid: connected nodes, messages by their ids, and replies that take their time.

    Attributes:
        connected: Node ids by public key.
        pushed: Every message that came, as it arrived.
    """

    def __init__(self, clock, answer, connected=None):
        """Make one.

        Args:
            clock: Tells when replies are there.
            answer: Given a message as it arrived, the seconds that its reply takes, and the reply.
            connected: Node ids by public key.
        """
        self.clock = clock
        self.answer = answer
        self.connected = connected or {}
        self.pushed = []
        self.pulls = []
        self._waiting = {}

    def get_nodes(self):
        return [NodeInfo(node_id=node, public_key=key) for key, node in self.connected.items()]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message_id = f"m{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.pushed.append(carried(message))
            arrived = carried(message)
            arrived.metadata.__dict__["_message_id"] = message_id
            ids.append(message_id)
            if (told := self.answer(arrived)) is not None:
                seconds, reply = told
                self._waiting[message_id] = self.clock.now + seconds, reply
        return ids

    def pull_messages(self, message_ids):
        self.pulls.append(list(message_ids))
        there = [each for each in message_ids if self._due(each)]
        return [carried(self._waiting.pop(each)[1]) for each in there]

    def _due(self, message_id):
        at, _ = self._waiting.get(message_id, (float("inf"), None))
        return at <= self.clock.now
