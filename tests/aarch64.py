"""A Python for aarch64 with onnxruntime, which QEMU runs here: the nearest thing to an ARM device.

``python -m tests.aarch64`` builds it once, from Debian's arm64 packages and PyPI's wheels, and
prints its folder: ``~/.cache/levit-search-tests/aarch64``, or what LEVIT_SEARCH_AARCH64 names. A
folder that is there is whole, and kept; whoever wants a new one removes it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

QEMU = "qemu-aarch64-static"
ONNXRUNTIME = "1.22.1"  # those after it crash under Debian 12's QEMU 7.2

# The oldest glibc that the wheels ask for; pip takes each of these names literally.
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")

# Read after the machine's own settings: its mirrors and proxies count, its state stays as it is.
_APT_SETTINGS = """\
APT::Architecture "arm64";
#clear APT::Architectures;
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
Acquire::Languages "none";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""


class BuildError(Exception):
    """The folder could not be built; the message says at which step and why."""


def folder() -> Path:
    """Where the emulated Python is, or would be."""
    named = os.environ.get("LEVIT_SEARCH_AARCH64")
    return Path(named) if named else Path.home() / ".cache" / "levit-search-tests" / "aarch64"


def command(root: Path | None = None) -> list[str]:
    """What starts the emulated Python, arguments excluded; it heeds no PYTHON... variable.

    A Python that runs so has to be started so again by its children: ``sys.executable`` alone is no
    program of this machine.
    """
    root = (root or folder()).absolute()
    python = str(root / "usr/bin/python3")
    return [shutil.which(QEMU) or QEMU, "-cpu", "cortex-a72", "-L", str(root), python, "-I"]


def missing() -> str | None:
    """What has to be installed or built before :func:`command` works; none: it does."""
    if shutil.which(QEMU) is None:
        return f"needs {QEMU} (apt-get install qemu-user-static)"
    if not _is_built(folder()):
        return f"needs {folder()} (python -m tests.aarch64)"
    return None


def build() -> Path:
    """Build the folder unless it is there.

    Raises:
        BuildError: a program is missing or failed.
    """
    target = folder()
    if _is_built(target):
        return target
    if target.exists():
        raise BuildError(f"{target}: is there but holds no Python; remove it or name another")
    for program, package in {
        QEMU: "qemu-user-static",
        "apt-get": "apt",
        "dpkg-deb": "dpkg",
    }.items():
        if shutil.which(program) is None:
            raise BuildError(f"{program} is not there; it is part of Debian's package {package}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        root = Path(name) / "root"
        _unpack_python(root, Path(name) / "apt")
        _install_wheels(root)
        _run_once(root)
        try:
            root.rename(target)
        except OSError:
            if not _is_built(target):  # else someone else was faster
                raise
    return target


def _is_built(root: Path) -> bool:
    return (root / "usr/bin/python3").exists()


def _unpack_python(root: Path, apt: Path) -> None:
    """Debian's python3 for arm64 with all that it depends on, of the release that runs here."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    settings = apt / "apt.conf"
    settings.write_text(_APT_SETTINGS.format(folder=apt))
    apt_get = ["apt-get", "-c", str(settings), "-q", "-y"]
    _run("the lists of arm64 packages", [*apt_get, "update"])
    wanted = ["python3", "libstdc++6"]  # the latter for onnxruntime
    _run("Debian's arm64 packages", [*apt_get, "--download-only", "install", *wanted])
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _run("unpacking", ["dpkg-deb", "-x", str(package), str(root)])
    if not (root / "lib").exists():  # a release that keeps all of it in usr, the loader too
        (root / "lib").symlink_to("usr/lib")


def _install_wheels(root: Path) -> None:
    found = re.fullmatch(r"python(3\.\d+)", (root / "usr/bin/python3").resolve().name)
    if found is None:
        raise BuildError("Debian's python3 of this release has no version in its name")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    pip += ["--only-binary=:all:", f"--python-version={found[1]}"]
    pip += [f"--platform={platform}" for platform in _PLATFORMS]
    pip += ["--target", str(root / "usr/lib/python3/dist-packages")]
    _run("wheels", [*pip, "numpy", f"onnxruntime=={ONNXRUNTIME}"])


def _run_once(root: Path) -> None:
    """See that it works; the modules compiled on the way halve the time of later starts."""
    program = "import platform, onnxruntime, numpy.random; print(platform.machine())"
    machine = _run("the first start", [*command(root), "-c", program]).strip()
    if machine != "aarch64":
        raise BuildError(f"the first start: it says it is {machine!r}, not 'aarch64'")


def _run(step: str, arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
        reason = "\n  ".join(lines or ["no message"])
        raise BuildError(f"{step}: {arguments[0]} ended with {done.returncode}\n  {reason}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(f"tests.aarch64: {error}")
