"""What executors are compared by: federations, and all that a run leaves behind."""

import torch
from federation import PlainSgd, federate, make_scenario, norm_model

from fedlearn import records
from fedlearn.client_state import ClientState
from fedlearn.runtimes.serial import Serial
from fedlearn.types import State

LARGE = 5000


class Remembering(PlainSgd):
    """Keeps tensors for good and for a while, and leans on what it kept."""

    def train_turn(self, model, experience, stream, turn, state):
        first = state.tensors.get("first", torch.full((LARGE,), float(turn.client_id)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * state.tensors.get("last", first).mean().sin())
        report = super().train_turn(model, experience, stream, turn, state)
        last = torch.full((LARGE,), report.loss)
        report.state = State(
            {"first": first, "last": last, **report.state.tensors}, report.state.values
        )
        return report


SETTINGS = {
    "plain": {},
    "stateful": {"continual": Remembering(), "fraction_train": 0.5, "rounds_per_experience": 4},
    "buffers": {"build_model": norm_model, "continual": Remembering()},
    "idle": {"scenario": make_scenario(empty=((1, 0), (2, 1)))},
}


def outcome(executor=Serial, **settings):
    """The digest, the clients' states and the events, without times, of a federation."""
    server, events, grid = federate(executor=executor, **settings)
    states = {}
    for node_id in grid.get_node_ids():
        context = grid.context(node_id)
        assert context.node_config == {"partition-id": node_id - 1}
        (state, last), staged = ClientState(context.state).committed(), context.state
        states[node_id] = (
            {name: tensor.tolist() for name, tensor in state.tensors.items()},
            state.values,
            last,
            [(key, dict(each)) for key, each in staged.config_records.items()],
            {
                key: {name: tensor.tolist() for name, tensor in records.to_tensors(each).items()}
                for key, each in staged.array_records.items()
            },
        )
    told = [{key: value for key, value in event.items() if key != "time"} for event in events]
    return server.digest, states, told
