"""Independent units of work: in this process, in a pool of processes, or on a Ray cluster."""

from uxnet.jobs.cluster import Cluster
from uxnet.jobs.work import Finished, shard, work

__all__ = ["Cluster", "Finished", "shard", "work"]
