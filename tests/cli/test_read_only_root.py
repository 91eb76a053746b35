"""A container whose root is read-only: only the volume with the database can be written."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.refreshes import SOON

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.refreshes import World

MOUNT = """\
set -e
mount -o remount,ro,bind /
for directory in /tmp /var/tmp /dev/shm; do
    mount --bind "$directory" "$directory"
    mount -o remount,ro,bind "$directory"
done
mount -t tmpfs -o mode=0700 tmpfs "$0"
cd /
exec env -u TMPDIR HOME=/nonexistent "$@"
"""
PROGRAM = """\
import os, sys, tempfile
from pathlib import Path
from tokenstore.cli.app import run
volume, providers, tokens = sys.argv[1:]
try:
    sys.exit("not read-only: " + tempfile.gettempdir())
except FileNotFoundError:
    pass
os.environ["TOKENSTORE_DATABASE"] = f"{volume}/tokens.db"
Path(volume, "providers.toml").write_text(providers)
Path(volume, "providers.toml").chmod(0o600)
Path(volume, "old").mkdir()
Path(volume, "old", "alice.json").write_text(tokens)
for line in (
    "import VOLUME/old --provider test", "refresh alice", "refresh --all", "status", "token alice",
    "history", "backup VOLUME/copy.db", "export VOLUME/new", "db downgrade 0001", "db upgrade",
    "db check", "restore VOLUME/copy.db", "delete alice", "doctor", "demo",
):
    print(f"\\x1e{run(line.replace('VOLUME', volume).split())} {line}", flush=True)
"""


@pytest.mark.needs("mount")
def test_every_command_works_without_a_temporary_directory(world: World, tmp_path: Path) -> None:
    provider = world.server.provider()
    providers = (
        f'[test]\ntoken_endpoint = "{provider.token_endpoint}"\nclient_id = "tokenstore"\n'
        f'client_secret = "{provider.client_secret}"\n'
    )
    tokens = json.dumps(world.server.sign_in("alice") | {"expires_in": None})
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), providers, tokens]

    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, tmp_path, *program],
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    ends = [part.partition("\n")[0] for part in ran.stdout.split("\x1e")[1:]]
    codes = {command: int(code) for code, _, command in (end.partition(" ") for end in ends)}
    assert len(codes) == 15
    assert {command for command, code in codes.items() if code} == {"demo"}, ran.stdout + ran.stderr
    assert "set TMPDIR" in ran.stderr
    assert "this is a bug" not in ran.stderr
    assert world.posts == 1
