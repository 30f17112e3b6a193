"""An ssh server of our own on this machine's loopback, and devices to reach through it.

It runs as whoever runs the tests, with keys, users and settings of its own, and touches nothing of
the machine's.
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime

from levit_search.latency.targets import SshTarget
from tests.servers import user

_START_S = 20.0

_SERVER = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
"""

# One server under several names, each with a fault of its own but the first.
_CLIENT = """\
Host refused
  Port {closed_port}
Host stranger
  UserKnownHostsFile /dev/null
Host changed
  UserKnownHostsFile {folder}/known_hosts_before
Host keyless
  IdentityFile {folder}/other_key
Host no-such-host.invalid
  HostName no-such-host.invalid
Host multiplexed
  ControlMaster auto
  ControlPath {folder}/master
  ControlPersist 5
Host attached
  RemoteCommand echo attached
  RequestTTY force

Host * !keyless
  IdentityFile {folder}/client_key
Host *
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def missing() -> str | None:
    """What has to be installed before :func:`running` works; none: it does."""
    absent = [name for name in ("sshd", "ssh", "ssh-keygen") if _program(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install openssh-server)"
    return None if user() is not None else "needs a user that the system knows"


def login() -> pwd.struct_passwd:
    """Whom the server lets in: whoever runs the tests."""
    return pwd.getpwuid(os.getuid())


class Server:
    """A server that runs, and how to reach it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    def target(self, host: str = "device", **keys: object) -> SshTarget:
        """The server as a target; ``host`` is a name of the client's configuration."""
        return SshTarget.model_validate(
            {"kind": "ssh", "host": host, "config_file": self.folder / "client", **keys}
        )


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server whose keys and settings are in ``folder``."""
    for name in ("host_key", "former_host_key", "client_key", "other_key"):
        _generate(folder / name)
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        port = _free_port()
        _settle(folder, port, closed_port=taken.getsockname()[1])
        log = folder / "log"
        process = _start(folder, log)
        try:
            _wait_for(port, process, log)
            yield Server(folder, port)
        finally:
            process.terminate()
            process.wait()


def _generate(path: Path) -> None:
    program = str(_program("ssh-keygen"))
    command = [program, "-q", "-t", "ed25519", "-N", "", "-C", "levit-search", "-f", str(path)]
    subprocess.run(command, check=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _settle(folder: Path, port: int, closed_port: int) -> None:
    settings = {"folder": folder, "port": port, "closed_port": closed_port}
    (folder / "server").write_text(_SERVER.format(**settings))
    (folder / "client").write_text(_CLIENT.format(**settings, user=login().pw_name))
    for name, key in {"known_hosts": "host_key", "known_hosts_before": "former_host_key"}.items():
        public = (folder / f"{key}.pub").read_text()
        (folder / name).write_text(f"[127.0.0.1]:{port} {public}")


def _start(folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as the system's own would at its start
    with log.open("wb") as file:
        command = [str(_program("sshd")), "-D", "-e", "-f", str(folder / "server")]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"sshd did not start: {log.read_text()}")


def python(folder: Path, with_packages: bool = True) -> Path:
    """A Python as a device has it, without this project: with numpy and onnxruntime or nothing."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    for module in (np, onnxruntime) if with_packages else ():
        assert module.__file__ is not None
        package = Path(module.__file__).parent
        for part in package.parent.glob(f"{package.name}*"):  # libraries and metadata beside it
            (site / part.name).symlink_to(part)
    return folder / "bin" / "python3"
