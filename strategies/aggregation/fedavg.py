"""FedAvg (McMahan et al. 2017, algorithm 1), summed exactly enough to be the same everywhere.

Deviations from Flower's own: sums run in float64 in the order of the replies, which the server
makes the order of client ids, so the result is the same bit for bit under every executor that
trains client by client; parameters keep their dtype. And a cohort stays one record both ways, where
the executor can keep it so: see `fedlearn.stacked`.
"""

from collections.abc import Iterable
from typing import ClassVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedlearn.records import SERVER_ROUND, metrics_of, of_kind, to_arrays, to_tensors
from fedlearn.stacked import Instructions, Replies, weighted_mean


class FedAvg(FlowerFedAvg):
    """The average of the clients' parameters, weighted by their numbers of samples.

    Attributes:
        reads_means: Whether the mean is all that the aggregation reads of the models, so that
            executors need not hand over single ones. A subclass with an `aggregate_train` of its
            own has to say so itself.
    """

    reads_means: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        """Take nothing for granted of a subclass that looks at replies."""
        if "aggregate_train" in cls.__dict__ and "reads_means" not in cls.__dict__:
            cls.reads_means = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the same instruction to all of the round's cohort."""
        return self._to_all(server_round, arrays, config, grid, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the same question to all who are asked."""
        return self._to_all(server_round, arrays, config, grid, MessageType.EVALUATE)

    def _to_all(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        message_type: str,
    ) -> Instructions:
        config[SERVER_ROUND] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        node_ids = list(grid.get_node_ids())
        reads_means = self.reads_means and self._averages_metrics
        weighted_by = self.weighted_by_key if reads_means else None
        return Instructions(content, node_ids, message_type, weighted_by)

    @property
    def _averages_metrics(self) -> bool:
        """Whether metrics are averaged, not given to a function of the user's, reply by reply."""
        return self.train_metrics_aggr_fn is aggregate_metricrecords

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the weighted mean of the replies' parameters and of their metrics.

        Args:
            server_round: 1-based.
            replies: Screened replies, in the order to sum them in.
        """
        if isinstance(replies, Replies) and self._averages_metrics:
            if not len(replies):
                return None, None
            mean, told = replies.mean(self.weighted_by_key)
            return to_arrays(mean), MetricRecord(dict(told))
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        weights = [
            float(cast(float, metrics_of(message)[self.weighted_by_key])) for message in valid
        ]
        models = [to_tensors(next(iter(of_kind(m.content, ArrayRecord).values()))) for m in valid]
        metrics = self.train_metrics_aggr_fn([m.content for m in valid], self.weighted_by_key)
        return to_arrays(weighted_mean(models, weights)), metrics
