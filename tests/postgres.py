"""A PostgreSQL server of our own on this machine's loopback, in a temporary folder.

PostgreSQL refuses to run as root; where the tests do, it runs as the user that its package makes.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import lacking
from tests.servers import Database, Server, free_port, user, wait_for

_SETTINGS = ("fsync=off", "unix_socket_directories=", "max_connections=20", "shared_buffers=16MB")


def _program(name: str) -> Path | None:
    # Debian keeps them off PATH, beside those of other versions.
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (versions[-1] if versions else None)
    return Path(found).resolve() if found else None


def _owner() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return user()
    return next((each for each in pwd.getpwall() if each.pw_name == "postgres"), None)


def missing() -> str | None:
    """What has to be installed before :func:`running` works; none: it does."""
    if _program("initdb") is None or _program("postgres") is None or _owner() is None:
        return "needs PostgreSQL (apt-get install postgresql)"
    return lacking("psycopg")


@contextmanager
def running() -> Iterator[Database]:
    """A server with a database ``levit``."""
    with server() as started:
        yield started.database


@contextmanager
def server() -> Iterator[Server]:
    """As :func:`running`, with the server itself."""
    owner = _owner()
    assert owner is not None
    # Its owner may not enter the folders that pytest makes.
    with tempfile.TemporaryDirectory(prefix="levit-postgres-") as name:
        os.chown(name, owner.pw_uid, owner.pw_gid)
        folder, password = Path(name), "se/cr:et@"  # what is spelt otherwise in an address
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)
        access = ["-U", "levit", "-A", "scram-sha-256", "--no-sync", "--locale=C.UTF-8"]
        access += ["--pwfile", f"{name}/password"]
        command = [str(_program("initdb")), "-D", f"{name}/data", *access]
        who: dict[str, Any] = {"user": owner.pw_uid, "group": owner.pw_gid, "cwd": folder}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **who)
        database = Database("postgresql", "levit", password, free_port(), "levit")
        # It would wait for clients to go on SIGTERM.
        started = Server(database, lambda: _start(folder, database.port, who), signal.SIGINT)
        started.start()
        try:
            database.administer("postgres", "CREATE DATABASE levit")
            yield started
        finally:
            started.stop()


def _start(folder: Path, port: int, who: dict[str, Any]) -> "subprocess.Popen[bytes]":
    command = [str(_program("postgres")), "-D", str(folder / "data"), "-h", "127.0.0.1"]
    options = [f"-cport={port}", *(f"-c{setting}" for setting in _SETTINGS)]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options], stdin=subprocess.DEVNULL, stdout=file, stderr=file, **who
        )
    wait_for(process, log, "ready to accept connections")
    return process
