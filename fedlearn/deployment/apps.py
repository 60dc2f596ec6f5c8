"""The Flower apps: what ``[tool.flwr.app]`` names, in this repository and in what is submitted."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedlearn import records

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the server's side of a run."""
    from fedlearn.deployment.serving import serve

    serve(grid, context)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Take a client's turn."""
    return _answer(message, context)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on what the client holds out."""
    return _answer(message, context)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Tell who the client is."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    """Answer in this process, which Flower started for this one message: slow, but it works."""
    from fedlearn.deployment.node import Node
    from fedlearn.deployment.packing import packed

    node = Node(int(context.node_config[records.PARTITION_ID]))
    reply = node.answer(message, node.configuration(context.run_config), context.state)
    return packed(reply)
