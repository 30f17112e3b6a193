"""Cores, memory, limits, clocks and disks of this machine."""

import errno
import math
import os
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from levit_search.doctor import Finding, fail, ok, warn
from levit_search.escaping import quoted
from levit_search.files import write_atomically
from levit_search.latency.worker import cores as usable_cores
from levit_search.latency.worker import device_name, is_emulated, lock_paths, open_lock

_CGROUPS = Path("/sys/fs/cgroup")
_LEAST_MEMORY_GB = 2.0
_LEAST_SHARED_MB = 256
_FEWEST_FILES = 1024
_SKEW_S = 5.0
_RAY_PORTS = {6379: "ray start --head", 8265: "Ray's dashboard"}
_SETTINGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("KMP_AFFINITY", "GOMP_CPU_AFFINITY", "GLIBC_TUNABLES", "MALLOC_CONF", "LD_PRELOAD"),
    "CUDA_VISIBLE_DEVICES",
)
_BLOCK = 1 << 20
_NO_ROOM_MB, _LITTLE_ROOM_MB = 100, 2000
# File systems on other machines, whose locks are not to be trusted by SQLite.
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "gpfs", "glusterfs", "beegfs"}


def cores() -> Finding:
    """How many cores there are, and how many of them this process may use."""
    count, usable = os.cpu_count() or 1, usable_cores()
    found = f"{usable} of {count} ({device_name()}, {platform.machine()})"
    quota = _cpu_quota()
    if is_emulated():
        breaks = "latencies say nothing of the machine that it plays"
        return warn(f"{found}, emulated", breaks, "measure on the device itself")
    if quota is not None and quota < usable:
        whole = max(1, math.floor(quota))
        breaks = "threads wait for each other, and latencies are far too long"
        mend = f"start the container with whole cores (docker run --cpuset-cpus=0-{whole - 1})"
        return warn(f"{found}; the container may use {quota:g} of them", breaks, mend)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * usable:
        breaks = "trials take longer and latencies are less sure"
        return warn(f"{found}; load {load:.1f}", breaks, "see what else runs (top)")
    return ok(f"{found}, load {load:.1f}")


def governor() -> Finding:
    """Whether cores change their clock while they are timed."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        name = path.read_text().strip()
    except OSError:
        return ok("none to be seen")
    if name in ("powersave", "ondemand", "conservative", "schedutil"):
        breaks = "latencies vary with the clock; the reference in turn takes out most of it"
        return warn(name, breaks, "sudo cpupower frequency-set --governor performance")
    return ok(name)


def memory() -> Finding:
    """Memory that is left, within the limits of a container."""
    try:
        import psutil
    except ImportError:  # which is a finding of its own
        return ok("not told without psutil")
    whole = psutil.virtual_memory()
    free, total = whole.available, whole.total
    limit = memory_limit()
    found = f"{free / 1e9:.1f} GB of {total / 1e9:.1f} GB available"
    if limit is not None and limit[0] < total:
        bound, used = limit
        free = min(free, bound - used)
        found += f"; the container may use {bound / 1e9:.1f} GB, {used / 1e9:.1f} GB of it in use"
    if free < _LEAST_MEMORY_GB * 1e9:
        breaks = "a worker takes about 1 GB and is killed where there is none left"
        mend = "end other work, or run with --jobs 1 --set data.in_memory=false"
        return warn(found, breaks, mend)
    return ok(found)


def _cpu_quota() -> float | None:
    """Cores that a container may keep busy; None: any."""
    for path in _cgroup_files("cpu.max"):
        share, _, period = path.read_text().strip().partition(" ")
        if share != "max":
            return int(share) / int(period)
    old = _CGROUPS / "cpu" / "cpu.cfs_quota_us"
    if old.is_file() and (share := old.read_text().strip()) not in ("-1", ""):
        return int(share) / int((old.parent / "cpu.cfs_period_us").read_text())
    return None


def memory_limit() -> tuple[int, int] | None:
    """Bytes that a container may use and does, without what of files the system lets go of first;
    None: any."""
    for path in _cgroup_files("memory.max"):
        bound = path.read_text().strip()
        if bound != "max":
            used, statistics = int((path.parent / "memory.current").read_text()), ""
            with suppress(OSError):
                statistics = (path.parent / "memory.stat").read_text()
            rows = [line.split() for line in statistics.splitlines()]
            return int(bound), used - sum(int(row[1]) for row in rows if row[0] == "inactive_file")
    old = _CGROUPS / "memory" / "memory.limit_in_bytes"
    if old.is_file():
        return int(old.read_text()), int((old.parent / "memory.usage_in_bytes").read_text())
    return None


def _cgroup_files(name: str) -> list[Path]:
    """A setting of this process's group and those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), "/")
    place = _CGROUPS / own.strip("/")
    folders = [place, *(each for each in place.parents if each.is_relative_to(_CGROUPS))]
    return [folder / name for folder in folders if (folder / name).is_file()]


def shared_memory() -> Finding:
    """Room for what processes that read pictures hand over."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return ok("none to be seen")
    free = shutil.disk_usage(place).free / 1e6
    if free < _LEAST_SHARED_MB:
        breaks = "training on sets that stay on disk may end with a bus error"
        mend = "docker run --shm-size=2g, or --set data.in_memory=true"
        return warn(f"{free:.0f} MB free in {place}", breaks, mend)
    return ok(f"{free:,.0f} MB free")


def files_limit() -> Finding:
    """How many files a process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return ok("no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEWEST_FILES:
        breaks = "training with several readers, and Ray, run out of them"
        mend = f"ulimit -n {min(4096, hard) if hard > 0 else 4096}"
        return warn(f"at most {soft} (may be raised to {hard})", breaks, mend)
    return ok("any number" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def clock() -> Finding:
    """Whether the clock tells a time after this package was made, and the same as the disk's."""
    now = time.time()
    made = Path(__file__).stat().st_mtime
    shown = time.strftime("%Y-%m-%d %H:%M:%S %z")
    with tempfile.NamedTemporaryFile() as file:
        skew = Path(file.name).stat().st_mtime - time.time()
    if now < made - 86400 or abs(skew) > _SKEW_S:
        cause = "before this package was installed" if now < made else f"{skew:+.0f} s on the disk"
        breaks = "times in records and downloads over https are wrong"
        return warn(f"{shown}, {cause}", breaks, "sudo timedatectl set-ntp true")
    return ok(shown)


def probe_locks() -> Finding:
    """The locks that keep probes and training of this host apart."""
    try:
        import fcntl
    except ImportError:
        return ok("this system has none; probe while nothing else runs")
    for path in lock_paths():
        try:
            with os.fdopen(open_lock(path)) as file, suppress(BlockingIOError):  # a probe's at work
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            breaks = "every probe, and training beside one"
            mend = "export LEVIT_SEARCH_LOCKS=DIR, a local folder that all users may write to"
            return fail(f"{path}: {error.strerror}", breaks, mend)
    return ok(str(Path(lock_paths()[0]).parent))


def network() -> Finding:
    """The machine's own name and the ports that Ray takes."""
    name = socket.gethostname()
    taken = []
    for port in _RAY_PORTS:
        try:
            socket.create_server(("", port)).close()
        except OSError:
            taken.append(port)
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        breaks, mend = "Ray does not start", f"add a line to /etc/hosts: 127.0.1.1 {name}"
        return warn(f"the name of this machine, {name}, has no address", breaks, mend)
    if taken:
        uses = ", ".join(f"{port} ({_RAY_PORTS[port]})" for port in taken)
        return ok(f"ports in use: {uses}; a cluster of Ray may run here")
    return ok("ports of Ray are free")


def settings() -> Finding:
    """Environment variables and the C library that decide how fast networks run."""
    given = {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)}
    library = " ".join(platform.libc_ver()).strip() or "an unknown C library"
    shown = ", ".join([library, *(f"{name}={value}" for name, value in given.items())])
    wrong = [
        name
        for name, value in given.items()
        if name.endswith("_NUM_THREADS") and not (value.isdigit() and int(value) > 0)
    ]
    if wrong:
        told = ", ".join(f"{name}={given[name]}" for name in wrong)
        breaks = f"{told} is no number of threads, and is ignored"
        return warn(shown, breaks, f"unset {' '.join(wrong)}")
    return ok(shown)


def terminal() -> Finding:
    """Whether what is printed can be shown."""
    encoding = (sys.stdout.encoding or "").lower()
    if encoding.replace("-", "") != "utf8":
        breaks = "names with other letters are not printed as they are"
        mend = "export PYTHONUTF8=1 LC_ALL=C.UTF-8"
        return warn(f"takes {encoding or 'no known characters'}", breaks, mend)
    kind = os.environ.get("TERM", "unknown") if sys.stdout.isatty() else "none"
    return ok(f"{kind}, {encoding}")


def folder(path: Path, breaks: str, elsewhere: str, locks: bool = False) -> Finding:
    """A folder that is written to: permissions, room, and locks that hold.

    Args:
        path: it need not be there yet.
        breaks: what fails where it cannot be written.
        elsewhere: how another one is chosen.
        locks: whether a study is kept in it, with SQLite's locks and ours.
    """
    place = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    found = f"{path}" if place == path else f"{path} (to be made in {place})"
    make_room = f"make room in {place}"
    try:
        with tempfile.TemporaryDirectory(prefix=".levit-search-doctor-", dir=place) as scratch:
            write_atomically(Path(scratch) / "file", b"\1" * _BLOCK)
            broken = _broken_locks(Path(scratch)) if locks else None
    except OSError as error:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                way_out = make_room
            case errno.EROFS:
                way_out = "have it mounted for writing"
            case errno.EACCES | errno.EPERM:
                way_out = f"chmod u+rwx {quoted(str(place))}, or have its owner do so"
            case _:
                way_out = f"see what is wrong with {place}"
        reason = error.strerror or str(error)
        return fail(f"{found}: {reason}", breaks, f"{way_out}, or {elsewhere}")
    if broken is not None:
        told = "two searches could write to one study at once"
        mend = "keep studies in a folder of this machine: --study DIR"
        return fail(f"{found}: {broken}", told, mend)
    kind = _file_system(place)
    free_mb = shutil.disk_usage(place).free / 1e6
    size = f"{free_mb / 1000:,.0f} GB" if free_mb >= 10_000 else f"{free_mb:,.0f} MB"
    found = f"{found}: {size} free" + (f", {kind}" if kind else "")
    if free_mb < _NO_ROOM_MB:
        return fail(found, breaks, f"{make_room}, or {elsewhere}")
    if locks and (kind in _REMOTE or kind.startswith("fuse.")):
        told = "SQLite's locks may not hold there, and each trial takes longer to write"
        mend = "run with --set storage=journal, or in a folder of this machine"
        return warn(f"{found}, which is on another machine", told, mend)
    if free_mb < _LITTLE_ROOM_MB:
        told = "weights and answers of teachers may fill it"
        return warn(found, told, f"make room, or {elsewhere}")
    return ok(found)


def _broken_locks(scratch: Path) -> str | None:
    """Which locks let two in at once, or cannot be had."""
    kind = "file locks"
    try:
        if os.name == "posix":  # Windows locks whatever is open
            import fcntl

            path, alone = scratch / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB
            with path.open("w") as held, path.open("w") as other:
                fcntl.flock(held, alone)
                with suppress(BlockingIOError):
                    fcntl.flock(other, alone)
                    return f"{kind} let two in at once"
        kind = "SQLite locks"
        connect = partial(sqlite3.connect, scratch / "trials.db", timeout=0, isolation_level=None)
        with closing(connect()) as first, closing(connect()) as second:
            first.execute("CREATE TABLE trials (number INTEGER)")
            first.execute("BEGIN IMMEDIATE")
            with suppress(sqlite3.OperationalError):
                second.execute("BEGIN IMMEDIATE")
                return f"{kind} let two in at once"
            first.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        return f"has no {kind} ({error})"
    return None


def _file_system(place: Path) -> str:
    """The kind of file system that a folder is on; empty where that is not told."""
    try:
        import psutil

        mounts = psutil.disk_partitions(all=True)
    except (ImportError, OSError):
        return ""
    here, best, kind = place.resolve(), Path("/"), ""
    for mount in mounts:
        point = Path(mount.mountpoint)
        if here.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, mount.fstype
    return kind
