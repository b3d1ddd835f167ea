"""Whether ports are free, and who has those that are not."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from infra.doctor.findings import Finding, ok, wrong

PROC: Final = Path("/proc")
_LISTENS: Final = "0A"  # a TCP state, as the kernel writes it


def examine(host: str, port: int, flag: str, stack_pid: int) -> Finding:
    """Look at one port.

    Args:
        flag: the option by which another is chosen.
        stack_pid: of the running stack of this data folder, which may have it; 0: none runs.
    """
    where = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return ok("port", f"{where} is free")
        except OSError as error:
            reason = error
    if reason.errno == errno.EADDRINUSE:
        pids = sorted(holders(port))
        if stack_pid and any(stack_pid in (pid, *_ancestors(pid)) for pid in pids):
            return ok("port", f"{where} is held by the running stack")
        who = ", ".join(f"{_name(pid)} (pid {pid})" for pid in pids) or "a process of another user"
        do = f"end it, or choose another port with {flag}"
        return wrong("port", f"{where} is taken by {who}", do)
    if reason.errno == errno.EACCES:
        do = f"choose one from 1024 on with {flag}, and let a balancer have this one"
        return wrong("port", f"{where} is not for this user", do)
    return wrong("port", f"{where}: {reason.strerror}", "choose a host of this machine with --host")


def holders(port: int) -> set[int]:
    """Return which processes listen on a TCP port, of those that this user may look into."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(port)}
    return {pid for pid, target in _open_sockets() if target in wanted} if wanted else set()


def _inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        for line in _lines(PROC / "net" / table):
            words = line.split()
            if len(words) < 10 or words[3] != _LISTENS:
                continue
            if int(words[1].rpartition(":")[2], 16) == port:
                yield words[9]


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text().splitlines()[1:]
    except OSError:
        return ()


def _open_sockets() -> Iterator[tuple[int, str]]:
    for folder in PROC.glob("[0-9]*"):
        try:
            for link in (folder / "fd").iterdir():
                yield int(folder.name), str(link.readlink())
        except OSError:
            continue  # another user's, or it has ended


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            pid = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        yield pid


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return "a process"
