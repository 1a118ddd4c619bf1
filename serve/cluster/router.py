"""Ray Serve's request router with adapter affinity; it runs in the process that holds the handle."""

from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.replica_result import ReplicaResult
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve.cluster.affinity import Affinity, ReplicaReport


class AffinityRouter(RequestRouter):
    """Sends a request to a replica that holds the model of `multiplexed_model_id`."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Ray with `request_router_kwargs`: those of `Affinity`."""
        self._affinity: Affinity[ReplicaID] = Affinity(**kwargs)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica; where that accepts no more, Ray asks again after a moment."""
        if not candidate_replicas:
            return []
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        reports = {name: ReplicaReport.parse(replica.routing_stats or {}) for name, replica in by_id.items()}
        if pending_request is None:
            return [[by_id[self._affinity.choose("", reports)]]]
        asked = pending_request.metadata
        pending_request.routing_context.should_backoff = True
        chosen = self._affinity.send(asked.internal_request_id, asked.multiplexed_model_id, reports, asked.session_id)
        return [[by_id[chosen]]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """A replica has accepted a request."""
        asked = pending_request.metadata
        self._affinity.began(replica_id, asked.internal_request_id, asked.multiplexed_model_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """It has ended, however."""
        self._affinity.ended(replica_id, internal_request_id)
