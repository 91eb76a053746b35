"""Jobs alone: who does the work, who waits, and what each of them is told."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.helpers.refreshes import SOON, Call
from tests.helpers.stores import python
from tokenstore import StorageError, TokenPersistError
from tokenstore.lifecycle.jobs import Job, Jobs, NoThreadError


class Work:
    """Work that waits for the test, and counts how often it was begun."""

    def __init__(self, result: object = "done") -> None:
        self.result = result
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.count = 0
        self.threads: list[threading.Thread] = []

    def __call__(self, _: Job[object]) -> object:
        self.count += 1
        self.threads.append(threading.current_thread())
        self.begun.set()
        assert self.go_on.wait(SOON)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def overdue() -> TimeoutError:
    return TimeoutError("the step is overdue")


def test_work_is_done_once_in_a_thread_of_its_own_for_all_who_wait() -> None:
    work = Work()
    job = Job(work)
    calls = [Call(job.wait) for _ in range(8)]
    assert work.begun.wait(SOON)
    meanwhile = job.is_at_work
    work.go_on.set()
    assert {call.result() for call in calls} == {"done"}
    assert job.wait() == "done"
    assert (meanwhile, job.is_at_work) == (True, False)
    assert work.count == 1
    [thread] = work.threads
    assert not thread.daemon
    assert thread is not threading.main_thread()


def test_each_caller_gets_a_copy_of_the_error() -> None:
    error = TokenPersistError("lost", "tokens.db", tokens={"access_token": "a"})
    work = Work(error)
    work.go_on.set()
    job = Job(work)
    caught = []
    for _ in range(2):
        with pytest.raises(TokenPersistError) as raised:
            job.wait()
        caught.append(raised.value)
    assert caught[0] is not caught[1]
    for each in caught:
        assert each is not error
        assert (str(each), each.path, each.tokens) == (str(error), error.path, error.tokens)


def test_a_caller_whose_deadline_passes_leaves_the_work_alone() -> None:
    work = Work()

    def step(job: Job[object]) -> object:
        job.expect(0.0, overdue)
        return work(job)

    job: Job[object] = Job(step)
    with pytest.raises(TimeoutError, match="the step is overdue"):
        job.wait()
    assert work.begun.wait(SOON)
    patient = Call(job.wait, patience=SOON)
    work.go_on.set()
    assert patient.result() == "done"
    assert work.count == 1


def test_a_new_deadline_reaches_those_who_wait() -> None:
    advance = threading.Event()
    work = Work()

    def step(job: Job[object]) -> object:
        assert advance.wait(SOON)
        job.expect(0.0, overdue)
        return work(job)

    job: Job[object] = Job(step)
    call = Call(job.wait)
    advance.set()
    assert isinstance(call.error(), TimeoutError)
    work.go_on.set()
    assert job.wait(patience=SOON) == "done"


def test_an_interrupted_caller_leaves_the_work_alone() -> None:
    work = Work()
    job = Job(work)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert work.begun.wait(SOON)
        signal.pthread_kill(main, signal.SIGINT)

    interrupting = Call(interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    interrupting.result()
    assert job.is_at_work
    work.go_on.set()
    assert job.wait() == "done"
    assert work.count == 1


def test_work_that_nobody_has_started_is_started_by_who_waits() -> None:
    work = Work()
    work.go_on.set()
    jobs: Jobs[object] = Jobs()
    job, is_new = jobs.join("alice", work)  # and its caller was interrupted here
    same, is_another = jobs.join("alice", work)
    assert (is_new, is_another) == (True, False)
    assert same is job
    assert same.wait() == "done"
    assert work.count == 1


def test_the_jobs_of_a_key_are_joined_until_it_is_forgotten() -> None:
    work = Work()
    jobs: Jobs[object] = Jobs()
    first, _ = jobs.join("alice", work)
    other, is_new = jobs.join("bob", work)
    assert is_new
    assert other is not first
    jobs.forget("alice", other)  # another's: nothing
    assert jobs.join("alice", work)[0] is first
    jobs.forget("alice", first)
    second, is_new = jobs.join("alice", work)
    assert is_new
    assert second is not first


def test_draining_waits_for_what_is_at_work_and_for_nothing_else() -> None:
    jobs: Jobs[object] = Jobs()
    jobs.join("never started", Work())
    work = Work()
    job, _ = jobs.join("alice", work)
    job.start()
    assert work.begun.wait(SOON)
    assert jobs.drain(0.0) == jobs.at_work() == [job]
    drain = Call(jobs.drain, SOON)
    work.go_on.set()
    assert drain.result() == []


def test_a_listener_is_called_once_whenever_it_came() -> None:
    work = Work()
    work.go_on.set()
    job = Job(work)
    told: list[str] = []
    job.when_done(lambda: told.append("early"))
    assert told == []
    job.wait()
    early = threading.Event()
    job.when_done(early.set)
    assert early.wait(SOON)
    job.when_done(lambda: told.append("late"))
    assert sorted(told) == ["early", "late"]


def test_a_job_that_was_refused_says_so_and_does_nothing() -> None:
    work = Work()
    job = Job(work)
    job.refuse()
    with pytest.raises(NoThreadError):
        job.wait()
    assert work.count == 0


def test_any_error_of_the_work_reaches_the_caller() -> None:
    for error in (ValueError("wrong"), StorageError("broken", "tokens.db")):
        work = Work(error)
        work.go_on.set()
        with pytest.raises(type(error), match=str(error)):
            Job(work).wait()


def test_a_thread_is_used_again() -> None:
    seen: set[int | None] = set()
    deadline = time.monotonic() + SOON
    while len(seen) < 2 and time.monotonic() < deadline:
        before = len(seen)
        job: Job[int | None] = Job(lambda _: threading.get_ident())
        seen.add(job.wait())
        if len(seen) == before:
            return  # a thread did two jobs
    raise AssertionError("each job had a thread of its own")


IDLE = """
from tokenstore.lifecycle.jobs import Job
assert Job(lambda job: 7).wait() == 7
tell("done")
"""


def test_an_idle_thread_does_not_keep_the_process() -> None:
    began = time.monotonic()
    assert python(IDLE) == "done\n"
    assert time.monotonic() - began < SOON / 2


AT_WORK = """
from tokenstore.lifecycle.jobs import Job
begun = threading.Event()
def work(job):
    begun.set()
    threading.main_thread().join()
    tell("the work ends")
Job(work).start()
begun.wait()
tell("the main thread ends")
"""


def test_the_process_waits_for_what_is_at_work() -> None:
    assert python(AT_WORK) == "the main thread ends\nthe work ends\n"


FORK = """
from tokenstore.lifecycle.jobs import Jobs
jobs, go_on = Jobs(), threading.Event()
job, _ = jobs.join("alice", lambda job: go_on.wait(20))
job.start()
while not job.is_at_work:
    pass
child = os.fork()
if not child:
    signal.alarm(20)
    new, is_new = jobs.join("alice", lambda job: "of the child")
    os._exit(0 if is_new and new.wait() == "of the child" and not jobs.at_work() else 1)
tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go_on.set()
tell(job.wait())
"""


def test_a_forked_child_begins_with_no_job() -> None:
    assert python(FORK) == "0\nTrue\n"
