"""A MariaDB server of our own on this machine's loopback, in a temporary folder."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import lacking
from tests.servers import Database, Server, free_port, user, wait_for

_PASSWORD = "se/cr:et@"
_FIRST = f"""\
CREATE DATABASE levit;
CREATE USER levit@'127.0.0.1' IDENTIFIED BY '{_PASSWORD}';
CREATE USER levit@'localhost' IDENTIFIED BY '{_PASSWORD}';
GRANT ALL ON levit.* TO levit@'127.0.0.1';
GRANT ALL ON levit.* TO levit@'localhost';
"""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/libexec")


def missing() -> str | None:
    """What has to be installed before :func:`running` works; none: it does."""
    programs = ("mariadbd", "mariadb-install-db", "my_print_defaults")
    absent = [name for name in programs if _program(name) is None]
    packages = "apt-get install mariadb-server-core mariadb-client-core"
    if absent:
        return f"needs {', '.join(absent)} ({packages})"
    return lacking("pymysql") if user() is not None else "needs a user that the system knows"


@contextmanager
def running() -> Iterator[Database]:
    """A server with a database ``levit``."""
    with server() as started:
        yield started.database


@contextmanager
def server() -> Iterator[Server]:
    """As :func:`running`, with the server itself."""
    owner = user()
    assert owner is not None
    # A socket's path must be short, which those of pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="levit-mariadb-") as name:
        common = ["--no-defaults", f"--datadir={name}/data", f"--user={owner.pw_name}"]
        command = [str(_program("mariadb-install-db")), *common]
        quiet = subprocess.DEVNULL
        access = "--auth-root-authentication-method=normal"
        subprocess.run([*command, access], check=True, stdout=quiet, stderr=quiet)
        database = Database("mysql", "levit", _PASSWORD, free_port(), "levit")
        (Path(name) / "first.sql").write_text(_FIRST)
        first = [f"--init-file={name}/first.sql"]

        def start() -> "subprocess.Popen[bytes]":
            process = _start(Path(name), database.port, [*common, *first])
            first.clear()
            return process

        started = Server(database, start, signal.SIGTERM)
        started.start()
        try:
            yield started
        finally:
            started.stop()


def _start(folder: Path, port: int, common: list[str]) -> "subprocess.Popen[bytes]":
    options = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket"]
    options += [f"--pid-file={folder}/pid"]
    options += ["--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(_program("mariadbd")), *common, *options],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    wait_for(process, log, "ready for connections")
    return process
