"""Processor time, memory and open ports of an instance's processes, by what they do."""

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from bench.records import Listener, ProcessMemory, Reach

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def role_of(command: Sequence[str]) -> str:
    """Return what a process does, from its command line: `darkroom:Ingress`, `TrackerActor`, `raylet`, ...

    Ray writes the class, and while a method runs its name, into the title of its workers.
    """
    title = " ".join(command).strip()
    if title.startswith("ray::"):
        name = title.removeprefix("ray::").split()[0]
        return name.removeprefix("ServeReplica:").split(".", 1)[0]
    for word in command:
        if word.endswith(".py"):
            return Path(word).stem
    if "-m" in command:
        return command[list(command).index("-m") + 1]
    return Path(command[0]).name if command else "ended"


def role(process: psutil.Process) -> str:
    """Return what a process does; `ended` for one that is gone."""
    try:
        return role_of(process.cmdline())
    except _GONE:
        return "ended"


class CpuMeter:
    """Counts the processor time that processes use from now on. Those that start later are not seen."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        self._before = {process: _cpu_s(process) for process in processes}

    def seconds(self) -> dict[str, float]:
        """Return the processor time used so far by role, in seconds."""
        used: dict[str, float] = defaultdict(float)
        for process, before_s in self._before.items():
            if (now_s := _cpu_s(process)) is not None and before_s is not None:
                used[role(process)] += now_s - before_s
        return used

    def ms_per(self, count: int) -> dict[str, float]:
        """Return the processor time by role, in milliseconds for each of `count`, the largest first."""
        shares = {name: round(1000 * seconds / count, 3) for name, seconds in self.seconds().items()}
        return dict(sorted(((r, ms) for r, ms in shares.items() if ms >= 0.01), key=lambda item: -item[1]))


def _cpu_s(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except _GONE:
        return None
    return float(times.user + times.system)


def memory(processes: Iterable[psutil.Process]) -> tuple[ProcessMemory, ...]:
    """Return resident and proportional memory by role, the largest first."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for process in processes:
        try:
            full = process.memory_full_info()
        except _GONE:
            continue
        found[role(process)].append((full.rss / 1e6, full.pss / 1e6))
    rows = [
        ProcessMemory(
            role=name,
            processes=len(sizes),
            rss_mb=round(sum(rss for rss, _ in sizes), 1),
            pss_mb=round(sum(pss for _, pss in sizes), 1),
        )
        for name, sizes in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.pss_mb))


def listeners(processes: Iterable[psutil.Process]) -> tuple[Listener, ...]:
    """Return the addresses on which each role accepts TCP connections."""
    found: dict[tuple[str, Reach], set[int]] = defaultdict(set)
    for process in processes:
        try:
            connections = process.net_connections("tcp")
        except _GONE:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                found[role(process), _reach(connection.laddr.ip)].add(connection.laddr.port)
    return tuple(Listener(role=r, reach=a, ports=tuple(sorted(ports))) for (r, a), ports in sorted(found.items()))


def _reach(address: str) -> Reach:
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return "every address"
    return "loopback" if ip.is_loopback else "node address"


def holding(processes: Iterable[psutil.Process], file: Path) -> psutil.Process | None:
    """Return the process that has `file` open."""
    for process in processes:
        try:
            if any(Path(opened.path) == file for opened in process.open_files()):
                return process
        except _GONE:
            continue
    return None
