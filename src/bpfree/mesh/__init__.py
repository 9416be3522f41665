"""Several processes that train one net: groups of processes, parts of a batch, and averages of gradients.

`torchrun` starts the processes, and torch.distributed connects them. This room knows tensors and modules, but neither
rules nor trainers: `bpfree.training.mesh` decides what a training splits.
"""

from bpfree.mesh.average import average_gradients
from bpfree.mesh.group import Group, LostProcessError
from bpfree.mesh.lane import Lane, Part, PassedOn
from bpfree.mesh.launch import join, launched, local_rank, processes_here, rank_of_process
from bpfree.mesh.members import Members, members_apart, own_members
from bpfree.mesh.share import Share, drawn_for_samples, share_of_batch, sharing, summed, whole

__all__ = [
    "Group",
    "Lane",
    "LostProcessError",
    "Members",
    "Part",
    "PassedOn",
    "Share",
    "average_gradients",
    "drawn_for_samples",
    "join",
    "launched",
    "local_rank",
    "members_apart",
    "own_members",
    "processes_here",
    "rank_of_process",
    "share_of_batch",
    "sharing",
    "summed",
    "whole",
]
