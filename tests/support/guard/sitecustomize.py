"""Ends a process of ours at once that unpickles a class, or starts a program on the data path.

Python imports this module by its name at the start of every process that tests start, as its
folder is on their PYTHONPATH.  It looks at events of the interpreter itself (PEP 578), so that no
library can do it unseen either.  What it caught stands in the file of `GUARD_FILE`; the test that
ran meanwhile fails.
"""

import os
import sys
import traceback

EXIT_STATUS = 97
# Of our processes, those that read what comes from outside.
_GUARDED = ("edge", "pool.worker", "pool.controller_main", "registry_sync")
_BUILDER = "pool.builder"  # a worker starts it for a plan, never for a call
_SPAWNS = frozenset(
    {
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
        *("os.fork", "os.forkpty", "pty.spawn"),
    }
)


def _module() -> str:
    words = sys.orig_argv
    at = words.index("-m") + 1 if "-m" in words else len(words)
    return words[at] if at < len(words) else ""


def _guard(event: str, args: tuple[object, ...]) -> None:
    if event == "pickle.find_class" or (event in _SPAWNS and _BUILDER not in repr(args)):
        _end(event, args)


def _end(event: str, args: tuple[object, ...]) -> None:
    stack = "".join(traceback.format_stack(limit=12))
    text = f"guard: {MODULE}: {event} {args!r:.300}\n{stack}"
    sys.stderr.write(text)
    sys.stderr.flush()
    if path := os.environ.get("GUARD_FILE"):
        with open(path, "a") as file:
            file.write(text)
    os._exit(EXIT_STATUS)


MODULE = _module()
if MODULE in _GUARDED:
    sys.addaudithook(_guard)
