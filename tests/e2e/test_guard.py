"""No process of ours that hears the outside unpickles a class or starts a program: watched always.

Every test that starts processes starts them under `tests/support/guard`; here is shown that it is
there and that it works.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import guarding
from tests.support.guard.sitecustomize import EXIT_STATUS
from tests.support.stack import Stack

pytestmark = pytest.mark.rule("SEC-8", "SEC-9")

UNPICKLE = "import pickle, os; pickle.loads(pickle.dumps(os.getpid)); print('done')"
SPAWN = "import subprocess; subprocess.run(['true']); print('done')"
SHELL = "import os; os.system('true'); print('done')"
FORK = "import os; os.fork() or os._exit(0); print('done')"
BUILDER = (
    "import subprocess, sys; subprocess.run([sys.executable, '-c', '', 'pool.builder']);"
    "print('done')"
)


def run(folder: Path, module: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as a process that is called as ours are."""
    path = folder.joinpath(*module.split("."))
    path.mkdir(parents=True)
    for parent in (path, *path.parents):
        if parent == folder:
            break
        (parent / "__init__.py").touch()
    (path / "__main__.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", module], cwd=folder, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "code", [UNPICKLE, SPAWN, SHELL, FORK], ids=["pickle", "run", "shell", "fork"]
)
@pytest.mark.parametrize("module", ["edge", "pool.worker"])
def test_what_is_forbidden_ends_the_process_and_is_told(
    tmp_path: Path, module: str, code: str
) -> None:
    done = run(tmp_path, module, code)
    assert (done.returncode, done.stdout) == (EXIT_STATUS, "")
    assert f"guard: {module}: " in done.stderr
    assert "__main__.py" in guarding.take()


def test_a_worker_may_start_a_builder_and_others_are_free(tmp_path: Path) -> None:
    assert run(tmp_path / "a", "pool.worker", BUILDER).stdout == "done\n"
    assert run(tmp_path / "b", "infra.cli", UNPICKLE + ";" + SPAWN).stdout == "done\ndone\n"
    assert guarding.take() == ""


def test_every_process_of_a_stack_is_watched(stack: Stack) -> None:
    stack.publish_observed("watched")
    assert stack.infer_observed("watched", 1).status == 200
    pids = stack.pids()
    assert {name.rpartition("-")[0] or name for name in pids} >= {
        *("edge", "worker", "controller", "sync")
    }
    for pid in pids.values():
        content = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found = dict(entry.partition(b"=")[::2] for entry in content)
        first = found[b"PYTHONPATH"].decode().split(os.pathsep)[0]
        assert Path(first) == guarding.FOLDER
        assert found[guarding.VARIABLE.encode()].decode() == os.environ[guarding.VARIABLE]
