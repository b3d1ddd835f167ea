"""What must not stand anywhere in our packages, because peers have been broken into through it.

Read out of every file: what turns bytes into code, starts processes, fetches what somebody names,
or has been the cause of a known hole in a library that we use.
"""

from __future__ import annotations

import ast
import functools

import pytest

from tests.support.source import TREES, dotted, imports, is_in, nodes

# Turn bytes into objects or code; each with the modules that may name it all the same.
UNSAFE_MODULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("pickle", "_pickle", "pickletools", "cloudpickle", "dill", "joblib"), ()),
    **dict.fromkeys(("marshal", "shelve", "jsonpickle", "codeop", "code", "xmlrpc"), ()),
    # Pickles what it sends; here functions of our own to processes of our own, by a command.
    "multiprocessing": ("infra.simulate.run",),
}
UNSAFE_NAMES = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    "torch.serialization.load",
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("yaml.full_load", "yaml.full_load_all", "yaml.Loader", "yaml.UnsafeLoader"),
    *("yaml.FullLoader", "yaml.CLoader"),
    *("numpy.lib.format.read_array", "numpy.fromregex"),
}
# What runs another program; its users, none of which is between a request and its answer.
SPAWNERS = {
    *("os.system", "os.popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.posix_spawnp"),
    *("os.execv", "os.execve", "os.execvp", "os.execvpe", "os.execl", "os.execlp"),
    *("os.spawnv", "os.spawnve", "os.spawnl", "os.spawnlp", "pty.spawn"),
    *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    *("asyncio.subprocess.create_subprocess_exec", "subprocess.Popen", "subprocess.run"),
    *("subprocess.call", "subprocess.check_call", "subprocess.check_output"),
    "concurrent.futures.ProcessPoolExecutor",
}
MAY_SPAWN = ("infra", "pool.building")  # commands and supervisor; the builder of plans
FETCHERS = {
    *("urllib.request", "http.client", "requests", "httpx", "aiohttp", "urllib3", "ftplib"),
    *("websockets", "smtplib", "telnetlib"),
}
MAY_FETCH = ("infra",)  # commands that ask a stack of the user's; registry_sync.s3 has boto3
READS_IN_PASSING = {
    *("registry_sync.documents", "registry_sync.trust"),  # see registry_sync/test_documents.py
    "edge.body_signature",  # lists of numbers
}


@functools.cache
def _names(tree: ast.AST) -> list[tuple[int, str]]:
    """Return every name that is used, as `module.name` also where it was imported by itself."""
    found: list[tuple[int, str]] = []
    renamed: dict[str, str] = {}
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    renamed[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                renamed[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                found.append((node.lineno, f"{node.module}.{alias.name}"))
    for node in nodes(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, _, rest = dotted(node).partition(".")
            name = renamed.get(first, first)
            found.append((node.lineno, f"{name}.{rest}" if rest else name))
    return found


def _uses(tree: ast.AST, names: set[str]) -> list[str]:
    return [f"line {line}: {name}" for line, name in _names(tree) if name in names]


def _unsafe(tree: ast.AST, module: str = "") -> list[str]:
    found = _uses(tree, UNSAFE_NAMES)
    for _, name in imports(tree):
        for unsafe, allowed in UNSAFE_MODULES.items():
            if is_in(name, (unsafe,)) and module not in allowed:
                found.append(name)
    for node in nodes(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        for word, safe in (("allow_pickle", False), ("trust_remote_code", False), ("shell", False)):
            value = given.get(word)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is safe):
                found.append(f"line {node.lineno}: {word}")
    return found


@pytest.mark.rule("SEC-8", "SEC-9")
def test_nothing_reads_what_could_run_code() -> None:
    found = {module: _unsafe(tree, module) for module, tree in TREES.items()}
    assert not {module: uses for module, uses in found.items() if uses}


@pytest.mark.rule("SEC-8")
@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import os, cloudpickle",
        "eval('1')",
        "f = exec",
        "import torch\ntorch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "from torch import load",
        "from torch import load as read",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import Loader",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "import marshal",
        "from multiprocessing import Pool",
    ],
)
def test_the_gate_sees(text: str) -> None:
    assert _unsafe(ast.parse(text))


@pytest.mark.rule("SEC-8")
@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "import yaml\nyaml.safe_load(text)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "self.load(path)",
        "import torch\ntorch.export.load(archive)",
    ],
)
def test_the_gate_lets_pass(text: str) -> None:
    assert not _unsafe(ast.parse(text))


@pytest.mark.rule("SEC-8")
def test_nothing_between_a_request_and_its_answer_starts_a_process() -> None:
    found = {
        f"{module} {use}"
        for module, tree in TREES.items()
        if not is_in(module, MAY_SPAWN)
        for use in _uses(tree, SPAWNERS)
    }
    assert not found


@pytest.mark.rule("SEC-6")
def test_nothing_fetches_what_a_request_could_name() -> None:
    found = {
        f"{module}: {name}"
        for module, tree in TREES.items()
        if not is_in(module, MAY_FETCH)
        for _, name in imports(tree)
        if any(is_in(name, (fetcher,)) for fetcher in FETCHERS)
    }
    assert not found


@pytest.mark.rule("SEC-18")
def test_no_part_of_starlette_with_a_history_is_used() -> None:
    """Paths come out of the scope, never out of a URL in which a Host can play a part."""
    parts = {"FileResponse", "StaticFiles", "HTTPSRedirectMiddleware"}
    found = {
        f"{module} line {node.lineno}: {dotted(node)}"
        for module, tree in TREES.items()
        if is_in(module, ("edge",))
        for node in nodes(tree)
        if isinstance(node, ast.Attribute)
        and (node.attr in {"form", *parts} or dotted(node).endswith("request.url"))
    }
    found |= {
        f"{module}: {name}"
        for module, tree in TREES.items()
        for _, name in imports(tree)
        if is_in(name, ("starlette", "multipart")) and name.rpartition(".")[2] in parts
    }
    assert not found


@pytest.mark.rule("SEC-19")
def test_no_unpacker_outlives_a_message() -> None:
    """msgpack itself is for who calls us: our own messages are read by msgspec, into types."""
    found = {
        f"{module} {use}"
        for module, tree in TREES.items()
        for use in _uses(tree, {"msgpack.Unpacker", "msgpack.fallback.Unpacker", "Unpacker"})
    }
    assert not found


def _read_in_passing(tree: ast.AST) -> set[str]:
    """Return where a function is the first to say which type is to be read."""
    calls = {
        call
        for function in nodes(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
    }
    return {
        f"line {call.lineno}: {dotted(call.func)}"
        for call in calls
        if "sys.argv" not in ast.unparse(call)  # a process reads them before it has threads
        and (
            dotted(call.func) == "msgspec.convert"
            or dotted(call.func).endswith(".Decoder")
            or (
                any(keyword.arg == "type" for keyword in call.keywords)
                and dotted(call.func).endswith(".decode")
            )
        )
    }


def test_types_are_looked_at_before_there_are_threads() -> None:
    """Two threads that are the first to read a Struct crash in msgspec; decoders are of modules."""
    found = {
        f"{module} {use}"
        for module, tree in TREES.items()
        if is_in(module, ("edge", "pool", "registry_sync")) and module not in READS_IN_PASSING
        for use in _read_in_passing(tree)
    }
    assert not found


@pytest.mark.parametrize(
    "text",
    ["msgspec.json.decode(data, type=T)", "msgspec.convert(x, T)", "msgspec.json.Decoder(T)"],
)
def test_the_gate_for_types_sees(text: str) -> None:
    assert _read_in_passing(ast.parse(f"def f():\n    return {text}"))
