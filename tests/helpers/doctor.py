"""Examine a store, and make what the doctor finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.helpers.stores import Process
from tokenstore import doctor

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.refreshes import World
    from tokenstore.doctor import Finding


def tokens(number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "access_token": f"CANARY-access-{number}",
        "refresh_token": f"CANARY-refresh-{number}",
        "expires_at": 4_000_000_000.0,
        **more,
    }


def look(path: Path, **options: Any) -> list[Finding]:
    """Examine a store; no secret is ever in what is found."""
    findings = doctor.examine(path, **options)
    assert "CANARY" not in repr(findings)
    return findings


def bad(path: Path, **options: Any) -> list[Finding]:
    """Return what has to be done."""
    return [finding for finding in look(path, **options) if finding.is_open]


def only(path: Path, **options: Any) -> Finding:
    """Return the one thing that has to be done."""
    [finding] = bad(path, **options)
    return finding


def listing(directory: Path) -> dict[str, tuple[int, float, bytes | None]]:
    """Return all that is there: modes, times and contents."""
    return {
        str(path.relative_to(directory)): (
            (found := path.lstat()).st_mode,
            0 if path.is_dir() else found.st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in directory.rglob("*")
    }


def examined(world: World, **options: Any) -> list[Finding]:
    providers = {"test": world.server.provider()}
    return look(world.path, **{"providers": providers, "clock": world.clock, **options})


BEGIN = """
repository = TokenRepository(sys.argv[1])
with repository.refresh_lock(sys.argv[2], timeout=1):
    record = repository.record(sys.argv[2])
    repository.journal.begin(record, provider="test", reason="due", longest=60)
    tell("begun")
    wait()
"""


def begin(path: Path, account: str) -> None:
    """Begin a refresh in a process that dies."""
    with Process(BEGIN, path, account) as process:
        assert process.line() == "begun"
        process.kill()
