"""What our own servers of databases have in common: an address, and their end."""

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

_START_S = 60.0


@dataclass(frozen=True)
class Database:
    """A database on a server on the loopback, and who may use it."""

    scheme: str
    user: str
    password: str
    port: int
    name: str

    @property
    def url(self) -> str:
        """With the password."""
        return self.spelt(quote(self.password, safe=""))

    def spelt(self, password: str) -> str:
        """The address with ``password`` as it stands there."""
        return f"{self.scheme}://{self.user}:{password}@127.0.0.1:{self.port}/{self.name}"

    def administer(self, database: str, statement: str) -> None:
        """Run a statement outside of any transaction in another database of the server."""
        from sqlalchemy import create_engine, text

        address = replace(self, name=database).url
        driver = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}[self.scheme]
        engine = create_engine(address.replace(self.scheme, driver, 1))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(statement))
        engine.dispose()


@dataclass
class Server:
    """A server that can be stopped and started again."""

    database: Database
    start_process: "Callable[[], subprocess.Popen[bytes]]"
    how: signal.Signals
    """To stop it at once, whoever is connected."""
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self.process is None
        self.process = self.start_process()

    def stop(self) -> None:
        """Stop it, if it runs, and wait for its end."""
        if self.process is not None:
            stop(self.process, self.how)
            self.process = None


def user() -> pwd.struct_passwd | None:
    """Whoever runs the tests, where the system knows them, as in a container it need not."""
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(process: "subprocess.Popen[bytes]", log: Path, text: str) -> None:
    """Wait until a server has written ``text`` to its log."""
    deadline = time.monotonic() + _START_S
    while text not in log.read_text():
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            raise RuntimeError(f"{process.args!r} did not start: {log.read_text()}")
        time.sleep(0.05)


def stop(process: "subprocess.Popen[bytes]", how: signal.Signals = signal.SIGTERM) -> None:
    """End a server, and wait for it."""
    process.send_signal(how)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
