"""The refresh protocol as a small model, and an explorer that visits every state of it.

Two processes refresh one account. A step is what one of them does atomically: one transaction, one
system call, one request. Between any two steps the other process may run, either may be killed,
a lock may be lost, the provider may respond or not, and the user may save, sign in or delete. The
names in the comments are those of `lifecycle.refresh`, `storage.journal` and `storage.repository`.

Run it with ``make model``; a violation is printed with the steps that lead to it.
"""

from __future__ import annotations

import gc
import sys
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PROPERTIES = {
    1: "a refresh token is sent again only if its sender died with an open entry, or the provider "
    "accepts it again, or the journal says that the first use failed",
    2: "a response that reached a living process, or the database, is never lost: the row does not "
    "hold the token that was sent once that process has ended its refresh",
    3: "from every state, without help from the user, the living processes can end their "
    "refreshes, free the lock and leave no open entry",
    4: "a dead process holds no lock; a process that has begun holds it, unless it was lost",
    5: "a token that the journal knows as spent is never sent",
    6: "the journal calls a token spent only if the provider exchanged it",
}

MUTATIONS = {
    "the lock is released before the outcome is stored": 4,
    "the lock survives its holder": 4,
    "a commit that fails is not repeated": 2,
    "a second attempt does not notice that the commit freed the lock": 4,
    "the row is compared by its version, not by the token that was sent": 2,
    "a spent token may be saved": 2,
    "a spent token may be saved and sent": 5,
    "an open entry of a living process is ignored": 1,
    "an open entry of a living process expires while it stores the response": 1,
    "open entries are read before the row is locked": 1,
    "nothing is recorded before the token is sent": 1,
    "a failure that cannot be stored leaves its entry open": 3,
    "a begin that is reported as failed may have left an entry": 3,
    "a superseded response without a refresh token counts as spent": 6,
}
"""How the protocol could be wrong, each with the property that fails then."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One configuration of the model, and its bounds."""

    name: str
    rotates: bool = True  # single-use refresh tokens; a reuse revokes the whole family
    replay_window: int = 0  # 1: a token that was exchanged is accepted again for a while
    on_lock: bool = False  # PostgreSQL: the outcome is committed on the lock's own transaction
    refreshes: int = 1  # how many refreshes each process may start
    interventions: int = 1  # of the user: edit, sign-in, delete, save of an old token
    kills: int = 1
    losses: int = 1  # of a lock
    commit_failures: int = 1  # once for each of these it is unknown whether it was stored
    mutations: tuple[str, ...] = ()
    only: int | None = None  # the only property that is checked

    def has(self, mutation: str) -> bool:
        """Return whether the protocol is wrong in this way."""
        assert mutation in MUTATIONS, mutation
        return mutation in self.mutations


class Token(NamedTuple):
    """A refresh token: what the provider and, for the properties, an onlooker know of it."""

    family: int
    status: str = "live"  # "replayable" (in the replay window), "used", "revoked"
    sent: str = ""  # "sent", and "excused" once it may be sent again
    held_by: int = -1  # which process got its successor; STORED once the database has it


class Entry(NamedTuple):
    """An open entry of the journal."""

    owner: int
    token: int
    at_work: bool = True  # journal._at_work, which only the owner can see


class Process(NamedTuple):
    """One of the two processes."""

    at: str = "idle"
    left: int = 0  # refreshes that it may still start
    attempts: int = 0  # of RefreshProtocol._once in this refresh
    token: int = -1  # record.tokens.refresh_token, as it was read
    unchanged: bool = False  # whether the row still has the version that was read
    lost: bool = False  # its lock
    response: int | str = ""  # the new token, or "refused", "unavailable", "unanswered"


class State(NamedTuple):
    """Everything that there is."""

    processes: tuple[Process, ...]
    tokens: tuple[Token, ...] = (Token(0),)
    row: int = 0  # the account's refresh token, GONE without an account
    row_by: int = -1  # the process whose current refresh wrote the row (accounts.refresh_id)
    row_past: frozenset[int] = frozenset()  # what it held before: copies of these may be saved
    lock: int = -1  # its holder
    entries: tuple[Entry, ...] = ()
    spent: frozenset[int] = frozenset()  # what Journal.spent_at knows
    requests: tuple[tuple[int, int], ...] = ()  # under way: sender, -1 if it does not wait; token
    budget: tuple[int, int, int, int] = (0, 0, 0, 0)  # interventions, kills, losses, commits


GONE = -2
STORED = 2
DEAD = Process("dead")
Step = tuple[str, State]


class ViolationError(Exception):
    """A property does not hold."""

    def __init__(self, number: int, step: str | None = None) -> None:
        super().__init__(f"property {number}: {PROPERTIES[number]}")
        self.number = number
        self.steps = () if step is None else (step,)  # that have led to it from the state


class Model:
    """The steps that can be made from a state."""

    def __init__(self, variant: Variant) -> None:
        self.variant = v = variant
        self.has = v.has
        idle = Process(left=v.refreshes)
        budget = (v.interventions, v.kills, v.losses, v.commit_failures)
        self.initial = State(processes=(idle, idle), budget=budget)

    def progress(self, s: State) -> Iterator[Step]:
        """Yield what processes and provider do by themselves."""
        for p, process in enumerate(s.processes):
            if process.at not in {"dead", "waiting"}:
                for label, after in getattr(self, f"_{process.at}")(s, p, process):
                    yield f"{'AB'[p]} {label}", after
        for request in sorted(set(s.requests)):
            yield from self._provider(s, request)

    # -- the protocol ---------------------------------------------------------------------------

    def _idle(self, s: State, p: int, me: Process) -> Iterator[Step]:
        """Step 1: RefreshProtocol._lock. Whoever cannot have the lock waits."""
        if me.left and s.lock == -1:
            yield "takes the lock", _set(s, p, Process("locked", me.left - 1), lock=p)

    def _locked(self, s: State, p: int, me: Process) -> Iterator[Step]:
        """Steps 2 and 3: _read, _resolve, HeldLock.is_lost.

        Whether the row satisfies the caller, or a recorded failure forbids a request, depends on
        what the caller wants; here both may happen, always.
        """
        yield "needs no request", self._leave(s, p)
        if s.row != GONE and not me.lost and me.attempts < 2:
            read = me._replace(
                at="read", attempts=me.attempts + 1, token=s.row, unchanged=True, response=""
            )
            yield "reads the row", _set(s, p, read)

    def _read(self, s: State, p: int, me: Process) -> Iterator[Step]:
        """Step 4: Journal.begin, one transaction."""
        if self._under_way(s, p):
            yield "finds a refresh under way", self._leave(s, p)
        elif self.has("open entries are read before the row is locked"):
            yield "finds no refresh under way", _set(s, p, me._replace(at="beginning"))
        else:
            yield from self._beginning(s, p, me)

    def _beginning(self, s: State, p: int, me: Process) -> Iterator[Step]:
        if not me.unchanged:  # AccountChanged, from TOUCH
            yield "finds the row changed", _set(s, p, me._replace(at="locked"))
        elif me.token in s.spent and not self.has("a spent token may be saved and sent"):
            yield "finds the token spent", self._leave(s, p)
        else:
            # CLOSE_INTERRUPTED, BEGIN_REFRESH
            entries = (
                ()
                if self.has("nothing is recorded before the token is sent")
                else (Entry(p, me.token),)
            )
            row_by = -1 if s.row_by == p else s.row_by
            begun = _set(s, p, me._replace(at="begun"), entries=entries, row_by=row_by)
            yield "begins", begun
            if s.budget[3]:
                failed = s
                if self.has("a begin that is reported as failed may have left an entry"):
                    failed = begun
                yield "cannot begin", self._leave(_spend(failed, 3), p)

    def _under_way(self, s: State, p: int) -> bool:
        """Journal._require_ended."""
        if self.has("an open entry of a living process is ignored"):
            return False
        for owner, _, at_work in s.entries:
            other = s.processes[owner]
            old = other.at == "answered" and self.has(
                "an open entry of a living process expires while it stores the response"
            )
            if at_work if owner == p else other.at != "dead" and not old:
                return True
        return False

    def _begun(self, s: State, p: int, me: Process) -> Iterator[Step]:
        """Step 5: _send."""
        token = s.tokens[me.token]
        if token.sent == "sent" and token.status != "replayable":
            self._violates(1, f"{'AB'[p]} sends R{me.token} again")
        if me.token in s.spent:
            self._violates(5, f"{'AB'[p]} sends R{me.token}, which is spent")
        yield (
            f"sends R{me.token}",
            _set(
                _mark(s, me.token, sent="sent"),
                p,
                me._replace(at="waiting"),
                requests=(*s.requests, (p, me.token)),
            ),
        )

    def _answered(self, s: State, p: int, me: Process) -> Iterator[Step]:
        """Step 7: _store or _failed, with Journal.finish; one transaction."""
        if s.lock == p and self.has("the lock is released before the outcome is stored"):
            yield "releases the lock", s._replace(lock=-1)
            return
        success = isinstance(me.response, int)
        after, applied = self._finish(s, p, me)
        unlocked = s
        if success and self.variant.on_lock and s.lock == p:
            # _run_on_lock: committed or not, the transaction has ended, and the lock with it
            known = not self.has("a second attempt does not notice that the commit freed the lock")
            unlocked = _set(s, p, me._replace(lost=True), lock=-1)
            after = _set(after, p, after.processes[p]._replace(lost=known), lock=-1)
        yield "stores the outcome", _set(after, p, after.processes[p]._replace(at="storing"))
        if not (success and applied):  # _Retry: a 5xx, or the account was changed meanwhile
            again = after.processes[p]._replace(at="locked")
            yield "stores the outcome, tries again", _set(after, p, again)
        if s.budget[3]:
            gives_up = self.has(
                "a commit that fails is not repeated"
                if success
                else "a failure that cannot be stored leaves its entry open"
            )
            failed = _spend(unlocked, 3)
            yield "cannot commit", self._leave(failed, p) if gives_up else failed
            untold = _set(after, p, after.processes[p]._replace(lost=unlocked.processes[p].lost))
            yield "commits and is not told", _spend(untold, 3)

    def _finish(self, s: State, p: int, me: Process) -> tuple[State, bool]:
        """Return what Journal.finish leaves, and whether the outcome belongs to the row."""
        sent, response = me.token, me.response
        ended = tuple(e for e in s.entries if e.owner != p)
        excused = s.tokens[sent].sent and "excused"
        if s.row == GONE:  # FORGET_REFRESH
            return _mark(s, sent, sent=excused, held_by=-1)._replace(entries=ended), False
        same = (
            me.unchanged
            if self.has("the row is compared by its version, not by the token that was sent")
            else s.row == sent
        )
        applied = s.row_by == p or same
        if not isinstance(response, int):  # STORE_FAILURE leaves the version as it is
            failed = _mark(s, sent, sent=excused)
            return failed._replace(entries=ended, row_by=p if same else s.row_by), applied
        after = s
        if same and s.row_by != p:  # _apply: STORE_TOKENS
            after = _write(s, response, by=p)
        spent = after.spent
        if response != sent:
            spent |= {sent}
            after = _mark(after, sent, held_by=STORED)
        else:  # no new refresh token: this one was not exchanged
            after = _mark(after, sent, sent=excused)
            wrong = "a superseded response without a refresh token counts as spent"
            if not applied and self.has(wrong):
                spent |= {sent}
        return after._replace(entries=ended, spent=spent), applied

    def _storing(self, s: State, p: int, me: Process) -> Iterator[Step]:  # noqa: ARG002
        """Step 8."""
        yield "releases the lock", self._leave(s, p)

    def _leave(self, s: State, p: int) -> State:
        """End the refresh: Journal.abandon, and the lock is released if it is still ours."""
        entries = tuple(e._replace(at_work=False) if e.owner == p else e for e in s.entries)
        for entry in entries:  # that is as if the process had died
            if entry.owner == p and s.tokens[entry.token].sent:
                s = _mark(s, entry.token, sent="excused")
        row_by = -1 if s.row_by == p else s.row_by
        me = Process(left=s.processes[p].left)
        lock = -1 if s.lock == p else s.lock
        return _set(s, p, me, entries=entries, lock=lock, row_by=row_by)

    # -- the provider, and what is done to processes and account ---------------------------------

    def _provider(self, s: State, request: tuple[int, int]) -> Iterator[Step]:
        """Handle a request, or let the hard end close its connection; step 6 is the judgement."""
        sender, number = request
        left = list(s.requests)
        left.remove(request)
        s = s._replace(requests=tuple(left))
        status, rotated, new = s.tokens[number].status, s, number
        if status in {"used", "revoked"}:
            family = s.tokens[number].family
            rotated = s._replace(
                tokens=tuple(
                    t._replace(status="revoked") if t.family == family else t for t in s.tokens
                )
            )
        elif self.variant.rotates:
            new = len(s.tokens)
            used = "replayable" if self.variant.replay_window else "used"
            rotated = _mark(s, number, status=used)
            rotated = rotated._replace(tokens=(*rotated.tokens, Token(s.tokens[number].family)))
        if sender < 0:
            yield f"the provider handles R{number}, nobody waits", rotated
            return
        me = s.processes[sender]._replace(at="answered")
        if status in {"used", "revoked"}:
            refused = _set(rotated, sender, me._replace(response="refused"))
            yield f"the provider refuses R{number} and revokes its family", refused
            return
        received = _mark(rotated, number, held_by=sender) if new != number else rotated
        success = _set(received, sender, me._replace(response=new))
        yield f"the provider exchanges R{number} for R{new}", success
        for name, after in (("rotates, then 5xx", rotated), ("5xx", s)):
            error = _set(after, sender, me._replace(response="unavailable"))
            yield f"the provider, for R{number}: {name}", error
        late = s._replace(requests=tuple(sorted((*s.requests, (-1, number)))))
        ended = _set(late, sender, me._replace(response="unanswered"))
        yield f"the hard end closes the connection with R{number}", ended

    def disturbances(self, s: State) -> Iterator[Step]:
        """Yield what the world does to processes and account."""
        interventions, kills, losses, _ = s.budget
        if kills:
            for p, process in enumerate(s.processes):
                if process.at != "dead":
                    yield f"{'AB'[p]} is killed", self._kill(_spend(s, 1), p)
        if losses and s.lock >= 0:
            lost = s.processes[s.lock]._replace(lost=True)
            yield "the lock is lost", _set(_spend(s, 2), s.lock, lost, lock=-1)
        for number, token in enumerate(s.tokens):
            if token.status == "replayable":
                yield f"the replay window of R{number} ends", _mark(s, number, status="used")
        if interventions:
            for label, after in self._interventions(s):
                yield f"the user {label}", _spend(after, 0)

    def _kill(self, s: State, p: int) -> State:
        for entry in s.entries:
            if entry.owner == p and s.tokens[entry.token].sent:
                s = _mark(s, entry.token, sent="excused")
        for number, token in enumerate(s.tokens):
            if token.held_by == p:  # its response died with it
                s = _mark(s, number, held_by=-1)
        entries = tuple(e for e in s.entries if e.owner != p)  # they hold nobody up from now on
        requests = tuple(sorted((-1 if o == p else o, t) for o, t in s.requests))
        survives = self.has("the lock survives its holder")
        lock = -1 if s.lock == p and not survives else s.lock
        row_by = -1 if s.row_by == p else s.row_by
        return _set(s, p, DEAD, entries=entries, requests=requests, lock=lock, row_by=row_by)

    def _interventions(self, s: State) -> Iterator[Step]:
        """TokenRepository.put and delete; each is one transaction."""
        signed_in = s._replace(
            tokens=(*s.tokens, Token(1 + max((t.family for t in s.tokens), default=0)))
        )
        yield "signs in again", _write(signed_in, len(s.tokens))
        if s.row != GONE:
            yield "edits a field", _write(s, s.row)
            # FORGET_REFRESHES: with the account, the journal forgets what was spent
            under_way = {e.token for e in s.entries}
            tokens = tuple(
                t if n in under_way else t._replace(sent=t.sent and "excused", held_by=-1)
                for n, t in enumerate(s.tokens)
            )
            gone = _write(s._replace(tokens=tokens, spent=frozenset()), GONE)
            yield "deletes the account", gone
        saves_spent = self.has("a spent token may be saved") or self.has(
            "a spent token may be saved and sent"
        )
        for old in s.row_past - {s.row}:
            if old not in s.spent or saves_spent:
                yield f"saves R{old}, an old copy", _write(s, old)

    def normal(self, s: State) -> State:
        """Return the state without what can no longer matter, so that there are fewer states."""
        if s.processes == (DEAD, DEAD):
            return State(s.processes)
        first, second = map(self._normal_process, s.processes)
        s = s._replace(processes=(first, second))
        if _order(first) > _order(second):  # A and B are alike
            s = _exchanged(s)
        processes = s.processes
        past = s.row_past if s.budget[0] else frozenset()
        numbers = {s.row, *past, *(t for _, t in s.requests), *(e.token for e in s.entries)}
        for p in processes:
            numbers |= {p.token, p.response} if isinstance(p.response, int) else {p.token}
        numbers -= {GONE, -1}
        new = {old: number for number, old in enumerate(sorted(numbers))}
        families: dict[int, int] = {}
        tokens = [s.tokens[n] for n in new]
        new |= {GONE: GONE, -1: -1}
        return State(
            tuple(
                p._replace(
                    token=new[p.token],
                    response=new[p.response] if isinstance(p.response, int) else p.response,
                )
                for p in processes
            ),
            tuple(t._replace(family=families.setdefault(t.family, len(families))) for t in tokens),
            new[s.row],
            s.row_by if s.row_by >= 0 and processes[s.row_by].at == "answered" else -1,
            frozenset(new[n] for n in past),
            s.lock,
            tuple(e._replace(token=new[e.token]) for e in s.entries),
            frozenset(new[n] for n in s.spent if n in new),
            tuple(sorted((sender, new[n]) for sender, n in s.requests)),
            s.budget,
        )

    def _normal_process(self, process: Process) -> Process:
        if process.at in {"locked", "storing"}:
            return process._replace(token=-1, unchanged=False, response="")
        by_version = "the row is compared by its version, not by the token that was sent"
        if process.at in {"begun", "waiting", "answered"} and not self.has(by_version):
            return process._replace(unchanged=False)
        return process

    # -- the properties of one state --------------------------------------------------------------

    def _violates(self, number: int, step: str | None = None) -> None:
        if self.variant.only in {None, number}:
            raise ViolationError(number, step)

    def check(self, s: State) -> None:
        """Raise if a property does not hold in a state."""
        at_work = {"begun", "waiting", "answered"}
        for p, process in enumerate(s.processes):
            if process.at == "dead" and s.lock == p:
                self._violates(4)
            if process.at in at_work and s.lock != p and not process.lost:
                self._violates(4)
        if s.row != GONE:
            holder = s.tokens[s.row].held_by
            if holder == STORED or (holder >= 0 and not _works_with(s, holder, s.row)):
                self._violates(2)
        if any(s.tokens[n].status == "live" for n in s.spent):
            self._violates(6)

    def is_final(self, s: State) -> bool:
        """Return whether nothing is under way."""
        alive = {p for p, process in enumerate(s.processes) if process.at != "dead"}
        idle = all(s.processes[p].at == "idle" for p in alive)
        return idle and s.lock == -1 and not any(e.owner in alive for e in s.entries)


def _order(process: Process) -> tuple[object, ...]:
    return (*process[:-1], str(process.response))


def _exchanged(s: State) -> State:
    """Return the state with A called B and B called A."""
    other = {-1: -1, 0: 1, 1: 0, STORED: STORED}
    return s._replace(
        processes=(s.processes[1], s.processes[0]),
        tokens=tuple(t._replace(held_by=other[t.held_by]) for t in s.tokens),
        row_by=other[s.row_by],
        lock=other[s.lock],
        entries=tuple(e._replace(owner=other[e.owner]) for e in s.entries),
        requests=tuple(sorted((other[sender], n) for sender, n in s.requests)),
    )


def _works_with(s: State, p: int, token: int) -> bool:
    return s.processes[p].at == "answered" and s.processes[p].token == token


def _set(s: State, p: int, process: Process, **changes: Any) -> State:
    """Return the state with another process *p*, and with other changes."""
    processes = (process, s.processes[1]) if p == 0 else (s.processes[0], process)
    return s._replace(processes=processes, **changes)


def _mark(s: State, number: int, **changes: Any) -> State:
    """Return the state with changes to a token."""
    token = s.tokens[number]._replace(**changes)
    return s._replace(tokens=(*s.tokens[:number], token, *s.tokens[number + 1 :]))


def _write(s: State, row: int, *, by: int = -1) -> State:
    """Write the row, with a new version."""
    return s._replace(
        row=row,
        row_by=by,
        row_past=s.row_past if s.row == GONE else s.row_past | {s.row},
        processes=tuple(p._replace(unchanged=False) for p in s.processes),
    )


def _spend(s: State, what: int) -> State:
    b = s.budget
    return s._replace(budget=(*b[:what], b[what] - 1, *b[what + 1 :]))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Result:
    """What an exploration found."""

    states: int
    transitions: int
    violated: int | None = None  # the number of the property
    trace: tuple[str, ...] = ()


def explore(variant: Variant, *, traced: bool = False) -> Result:
    """Visit every state, breadth first, until a property fails.

    States are the same if they differ in tokens that nobody can use any more. Not so if the steps
    are to be traced, where each token has its own number.
    """
    gc.disable()  # millions of tuples, no cycles: collecting costs more than exploring
    try:
        return _explore(Model(variant), traced=traced)
    finally:
        gc.enable()


def _explore(model: Model, *, traced: bool) -> Result:
    states, number = [model.initial], {model.initial: 0}
    came_from: list[tuple[int, str]] = [(0, "")]
    sources, targets = array("L"), array("L")  # of the steps that count for property 3
    transitions = at = 0

    def trace(last: int) -> tuple[str, ...]:
        steps = []
        while last:
            last, label = came_from[last]
            steps.append(label)
        return tuple(reversed(steps))

    while at < len(states):
        state = states[at]
        try:
            model.check(state)
            progress = list(model.progress(state))
        except ViolationError as violation:
            return Result(
                len(states), transitions, violation.number, (*trace(at), *violation.steps)
            )
        steps = [*progress, *model.disturbances(state)]
        for index, (label, after) in enumerate(steps):
            if not traced:
                after = model.normal(after)  # noqa: PLW2901
            found = number.setdefault(after, len(states))
            if found == len(states):
                states.append(after)
                came_from.append((at, label))
            if index < len(progress):
                sources.append(at)
                targets.append(found)
        transitions += len(steps)
        at += 1

    stuck = _without_a_way_on(model, states, sources, targets)
    if stuck is not None and model.variant.only in {None, 3}:
        return Result(len(states), transitions, 3, trace(stuck))
    return Result(len(states), transitions)


def _without_a_way_on(
    model: Model, states: list[State], sources: array[int], targets: array[int]
) -> int | None:
    """Return the first state with a living process from which no final state can be reached."""
    before: list[list[int]] = [[] for _ in states]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    reached = bytearray(len(states))
    todo = [n for n, state in enumerate(states) if model.is_final(state)]
    for n in todo:
        reached[n] = 1
    while todo:
        for n in before[todo.pop()]:
            if not reached[n]:
                reached[n] = 1
                todo.append(n)
    return next(
        (n for n, s in enumerate(states) if not reached[n] and s.processes != (DEAD, DEAD)), None
    )


VARIANTS = (
    Variant("single use, reuse revokes"),
    Variant("the same, with a replay window", replay_window=1),
    Variant("the same, stored by the lock's own transaction", on_lock=True),
    Variant("the refresh token is not rotated", rotates=False),
    Variant("two refreshes of each process, no lock lost", refreshes=2, losses=0),
)


def wrong(*mutations: str) -> Variant:
    """Return a variant in which the protocol is wrong."""
    way_on = MUTATIONS[mutations[0]] == 3  # shows only once every state was visited
    return Variant(
        " + ".join(mutations),
        rotates="a superseded response without a refresh token counts as spent" not in mutations,
        on_lock="a second attempt does not notice that the commit freed the lock" in mutations,
        interventions=0 if way_on else 1,
        losses=0 if way_on else 1,
        mutations=mutations,
        only=MUTATIONS[mutations[0]],
    )


def main() -> int:
    """Explore every variant, and print what was found."""
    failed = 0
    for variant in VARIANTS:
        began, result = time.monotonic(), explore(variant)
        failed += result.violated is not None
        _print(
            f"{variant.name}: {result.states:,} states, {result.transitions:,} transitions, "
            f"{time.monotonic() - began:.0f} s: {_verdict(result.violated)}"
        )
        if result.violated is not None:
            _print(*explore(variant, traced=True).trace, indent="    ")
    _print("", "checked in each:", *(f"{n}. {text}" for n, text in PROPERTIES.items()))
    _print("", "with a fault in the protocol:")
    for mutation, expected in MUTATIONS.items():
        result = explore(wrong(mutation))
        failed += result.violated != expected
        _print(f"{mutation}: {_verdict(result.violated)} after {len(result.trace)} steps")
        if "--traces" in sys.argv:
            _print(*explore(wrong(mutation), traced=True).trace, indent="    ")
    return 1 if failed else 0


def _verdict(violated: int | None) -> str:
    return "every property holds" if violated is None else f"property {violated} fails"


def _print(*lines: str, indent: str = "") -> None:
    sys.stdout.write("".join(f"{indent}{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
