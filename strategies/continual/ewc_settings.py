"""Settings of EWC, alone or with replay: what both engines of local training check."""

from typing import Literal, get_args

from strategies.continual.bounds import at_least, one_of, within

Mode = Literal["separate", "online"]
"""One penalty per past experience, or a single decayed one."""


def check_springs(ewc_lambda: float, mode: Mode, decay_factor: float | None) -> None:
    """Check the settings of EWC's penalty.

    Args:
        ewc_lambda: Weight of the penalty, at least 0.
        mode: How past experiences are added up.
        decay_factor: What is left of old importances at each experience's end, in [0, 1]; needed
            by, and only allowed for, ``mode="online"``.

    Raises:
        ValueError: A setting is out of bounds, or does not go with another one.
    """
    at_least("ewc_lambda", ewc_lambda, 0)
    one_of("mode", mode, get_args(Mode))
    if mode == "separate" and decay_factor is not None:
        raise ValueError(
            f"continual.decay_factor={decay_factor}: only mode=online decays; use null"
        )
    if mode == "online":
        if decay_factor is None:
            raise ValueError("continual.decay_factor=null: mode=online needs a number in [0, 1]")
        within("decay_factor", decay_factor, 0, 1)
