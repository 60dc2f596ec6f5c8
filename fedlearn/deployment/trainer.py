"""The trainer: a process beside a SuperNode that keeps torch, data, model and state warm.

Flower's own way is a new Python process for every message, which imports torch, loads the data and
builds the model each time. The trainer takes its place: it asks the SuperNode for tasks, as
``flower-superexec`` would, and answers them itself. It runs the fedlearn that this machine has
installed; the app that came with the run is never executed.
"""

import logging
import sys
import time
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from fedlearn.config.errors import one_line
from fedlearn.deployment.audit import Audit
from fedlearn.deployment.configuration import Configuration
from fedlearn.deployment.folder import Folder
from fedlearn.deployment.node import Node
from fedlearn.deployment.packing import packed
from fedlearn.deployment.states import STATES, StateFiles

PAUSE = 0.1
"""Seconds between questions for a task; they go to a process on this machine."""

SHORTEST_S, LONGEST_S = 0.03, 0.3
"""Seconds between looks for a part of a message that the SuperNode has yet to receive."""

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

_log = logging.getLogger(__name__)


class Trainer:
    """Answers the tasks of one SuperNode."""

    def __init__(
        self, node: Node, states: StateFiles, audit: Audit, address: str, secret: bytes
    ) -> None:
        """Make one.

        Args:
            node: Answers the messages.
            states: Keeps what it carries from one to the next.
            audit: Writes down what leaves.
            address: Of the SuperNode's runtime API, on this machine.
            secret: Tells the SuperNode that the one who asks may have tasks.
        """
        self._node = node
        self._address = address
        self._states = states
        self._audit = audit
        self._asking = self._client(
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=frozenset({ACQUIRE})
            )
        )

    def serve(self) -> None:
        """Answer tasks for ever."""
        while True:
            try:
                token = self._acquire()
            except httpx.HTTPError:  # the SuperNode is starting, or starts again
                token = None
                time.sleep(1.0)
            if token is None:
                time.sleep(PAUSE)
                continue
            try:
                self._take(token)
            except Exception:  # whatever it was, the next task has nothing to do with it
                _log.exception("a task was lost")

    def _acquire(self) -> str | None:
        """Return the token of a task that is now this process's, if there is any."""
        reply = self._asking.AcquireTask(
            AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        )
        return str(reply.token) if reply.HasField("task") and reply.token else None

    def _take(self, token: str) -> None:
        client = self._client(RuntimeTokenHttpInterceptor(token))
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        status, details = SubStatus.FAILED, "lost"
        try:
            message, context = _received(client)
            started, run = time.perf_counter(), ""
            try:
                told = self._node.configuration(context.run_config)
                run = told.run
                reply = self._answer(message, told)
                status, details = SubStatus.COMPLETED, ""
            except Exception as error:  # costs this client its turn, and nobody anything else
                _log.warning("a message could not be answered", exc_info=True)
                details = one_line(f"{error}") or type(error).__name__
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                reply = Message(Error(code=code, reason=details), reply_to=message)
            context.state = RecordDict()  # stays here
            seconds = time.perf_counter() - started
            self._audit.note(run, reply)
            push_message(client, packed(reply), context)
            push_task_output(client, context, status, details)
            _log.info("%s answered in %.2f s", message.metadata.message_type, seconds)
        finally:
            heartbeat.stop()
            client.close()

    def _answer(self, message: Message, told: Configuration) -> Message:
        """Return the reply to a message; what it leaves behind is on disk by then."""
        before = {key: id(record) for key, record in self._states.state(told.run).items()}
        try:
            state = self._states.state(told.run)
            reply = self._node.answer(message, told, state)
            if before != {key: id(record) for key, record in state.items()}:
                self._states.save(told.run)
        except BaseException:
            self._states.forget()
            raise
        return reply

    def _client(self, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
        retry = make_simple_http_retry_invoker()
        retry.max_tries = 3
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,  # it does not leave the machine
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), interceptor],
            retry_invoker=retry,
        )


def _received(client: RuntimeHttpClient) -> tuple[Message, Context]:
    """Return a task's message, and what Flower says of its run.

    As Flower's ``pull_task_input``, which looks again only after 1 s, and then ever more rarely,
    for what the SuperNode itself has yet to receive: a trainer that is awake is always too early.
    """
    told = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = told.task_id, told.run.run_id
    TaskIdentity.node_id = told.context.node_id
    context = context_from_proto(told.context)
    (tree,) = client.PullMessages(PullAppMessagesRequest()).message_object_trees
    node = ProtoNode(node_id=context.node_id)
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, context.run_id),
        make_confirm_message_received_fn_protobuf(
            client.ConfirmMessageReceived, node, context.run_id
        ),
        return_type=Message,
        max_tries_per_object=None,
        initial_backoff=SHORTEST_S,
        backoff_cap=LONGEST_S,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id  # which is not among its bytes
    return message, context


def main(path: Path, port: int, device: str, threads: int, data: str | None) -> None:
    """Serve the SuperNode of a node's folder until the process ends."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder = Folder(path)
    node = Node(folder.number, folder.admin_public, device, threads, data, folder.path)
    secret = (folder.path / "executor.secret").read_bytes()
    states = StateFiles(folder.path / STATES)
    audit = Audit(folder.audit)
    Trainer(node, states, audit, f"127.0.0.1:{port}", secret).serve()


if __name__ == "__main__":
    _path, _port, _device, _threads, *_data = sys.argv[1:]
    main(Path(_path), int(_port), _device, int(_threads), _data[0] if _data else None)
