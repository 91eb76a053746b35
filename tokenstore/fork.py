"""What a fork does to this package: one registry, and an order that is written down.

A child of fork has one thread, a copy of every lock as another thread may have left it, and the
connections that its parent continues to use. Whatever must not be used like that registers here.

1. `Stage.SQLITE`: before the fork, waits for transactions under way and closes every connection.
2. `Stage.POSTGRESQL`: the child leaves the parent's connections alone.
3. `Stage.LOCKS`, `Stage.THREADS`, `Stage.CACHES`: the child starts with free locks and no threads.

Before a fork and in the child, the stages run in this order; in the parent, in reverse.
"""

from __future__ import annotations

import os
from enum import IntEnum
from weakref import WeakSet

# The hooks that run before a fork run in reverse order of their registration. filelock's must run
# after ours, which waits for threads that hold its locks.
import filelock  # noqa: F401


class Stage(IntEnum):
    """When a participant has its turn."""

    SQLITE = 1
    POSTGRESQL = 2
    LOCKS = 3
    THREADS = 4
    CACHES = 5


class ForkParticipant:
    """What registers: each method is called at every fork, for as long as the object lives."""

    def before_fork(self) -> None:
        """Prepare for the fork, in the thread that forks."""

    def after_fork_in_parent(self) -> None:
        """Continue in the parent."""

    def after_fork_in_child(self) -> None:
        """Start over in the child."""


_participants: dict[Stage, WeakSet[ForkParticipant]] = {stage: WeakSet() for stage in Stage}


def register(stage: Stage, participant: ForkParticipant) -> None:
    """Call the methods of *participant* at every fork from now on; no reference to it is kept."""
    _participants[stage].add(participant)


def _in_order() -> list[ForkParticipant]:
    return [participant for stage in Stage for participant in list(_participants[stage])]


def _before() -> None:
    for participant in _in_order():
        participant.before_fork()


def _in_parent() -> None:
    for participant in reversed(_in_order()):
        participant.after_fork_in_parent()


def _in_child() -> None:
    for participant in _in_order():
        participant.after_fork_in_child()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
