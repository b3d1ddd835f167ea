"""Options that several commands share, and how their documents and errors are found."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from infra.client import NoController, ask
from infra.stack import CannotStart, Node
from pool.wire import control
from registry_sync.documents import BadDocument
from registry_sync.endpoints import NoHistory, RevisionConflict
from registry_sync.keys import CannotRotate, KeyExists, NoSuchKey
from registry_sync.leader import look
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.rollouts import RolloutRefused
from registry_sync.stores import Store, StoreError
from registry_sync.trust import BadTrust, read_keys_file

DATA_DEFAULT = Path(os.environ.get("TIDEPOOL_DATA", ".tidepool"))

Data = Annotated[Path, typer.Option("--data", help="The node's data folder.")]
Registry = Annotated[
    str, typer.Option("--registry", help="s3://bucket/prefix or a folder; default: the stack's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
For = Annotated[str, typer.Option("--for", help="Device classes, such as sm_86,sm_120.")]
EngineName = Annotated[
    str, typer.Option("--engine", help="That is to build; default: any that can.")
]
LogLevel = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]

RequireSigned = Annotated[
    Path | None,
    typer.Option(
        "--require-signed",
        help="Use only versions signed by a key in this file; see `keys signing`.",
    ),
]


def trusted_file(path: Path | None) -> str:
    """Return where a node's trusted keys are; empty: versions need no signature.

    Raises:
        CannotStart: the file cannot be used, or trusts nobody.
    """
    if path is None:
        return ""
    try:
        keys = read_keys_file(path)
    except BadTrust as error:
        raise CannotStart(f"--require-signed: {error}") from None
    if not keys.trusted:
        raise CannotStart(
            f"--require-signed {path}: no key is trusted, so nothing could be served; see "
            "`tidepool keys signing trust`"
        )
    return os.path.abspath(path)


def node_of(data: Path) -> Node:
    """Return the node of `--data`."""
    return Node(Path(os.path.abspath(data)))


def registry_url(data: Path, registry: str) -> str:
    """Return the registry to work on: as said, else the running stack's, else DATA/registry."""
    if registry:
        return registry if "://" in registry else os.path.abspath(registry)
    node = node_of(data)
    stack = node.read_stack()
    return stack.registry if stack is not None else str(node.data / "registry")


def has_registry(data: Path, registry: str) -> bool:
    """Tell whether there is a registry already; opening a folder makes one."""
    url = registry_url(data, registry)
    return url.startswith("s3://") or Path(url.removeprefix("file://")).is_dir()


def store_of(data: Path, registry: str, *, writes: bool = True) -> Store:
    """Open the registry to work on.

    Args:
        data: the folder of the stack.
        registry: as given; empty: that of the stack.
        writes: a folder that is not there may be made.

    Raises:
        CannotStart: there is none to read from; or the folder of a running stack's registry is
            gone, and a new one in its place would make the stack forget every model and key.
    """
    url = registry_url(data, registry)
    stack = node_of(data).read_stack()
    if registry and not writes and not has_registry(data, registry):
        raise CannotStart(f"there is no registry at {url}")
    if stack is not None and stack.registry == url and "://" not in url and not Path(url).exists():
        raise CannotStart(f"the registry's folder {url} is gone; is it mounted?")
    return open_store(url)


@contextmanager
def said() -> Iterator[None]:
    """Turn what a document command may meet into a failure that names value and way out."""
    try:
        yield
    except RolloutRefused as error:
        raise CannotStart(error.told(_option)) from None
    except (
        BadDocument,
        BadName,
        StoreError,
        RevisionConflict,
        NoHistory,
        CannotRotate,
        KeyExists,
        NoSuchKey,
        NoController,
        ValueError,
        OSError,
    ) as error:
        raise CannotStart(str(error)) from None


def _option(name: str, value: str) -> str:
    word = "--" + name.replace("_", "-")
    return word if value == "true" else f"{word} {value}"


def controller_address(data: Path, store: Store | None) -> str | None:
    """Return where the controller can be asked: this machine's, else the leader record's."""
    node = node_of(data)
    stack = node.read_stack()
    if stack is not None:
        return stack.control
    if node.has_controller():  # a controller by itself writes no stack.json
        return node.control
    if store is not None and store.url.startswith("s3://"):
        record = look(store).record
        return None if record is None else record.url
    return None


class _Poked(msgspec.Struct):
    """What a controller answers; a former release's has no `rejected`."""

    rejected: dict[str, str] = {}


def poke(data: Path, store: Store, *, says_if_nobody: bool = False, document: str = "") -> bool:
    """Let the running stack, if there is one, take over what was just written.

    Returns:
        True when every live edge goes by it; False where no controller could be told.

    Args:
        data: the folder of the stack.
        store: the registry.
        says_if_nobody: where no stack is known here, say that no running edge goes by it yet.
        document: the key of what was written.

    Raises:
        CannotStart: some edge did not confirm, or nobody goes by `document`; it is written all the
            same.
    """
    try:
        address = controller_address(data, store)
        if address is None:
            if says_if_nobody:
                typer.echo(
                    "written; no controller is known here, so no running edge goes by it yet",
                    err=True,
                )
            return False
        answer = asyncio.run(ask(address, node_of(data).data, "poke"))
    except (NoController, StoreError) as error:
        typer.echo(f"written; no controller could be told ({error})", err=True)
        return False
    _require(answer, "written, but not every edge has confirmed")
    if why := msgspec.json.decode(answer.data, type=_Poked).rejected.get(document):
        raise CannotStart(f"written, but the stack goes by the last good one: {document}: {why}")
    return True


def print_json(content: object) -> None:
    """Print a result as one line of JSON."""
    typer.echo(msgspec.json.encode(content).decode())


def _require(answer: control.Answer, what: str) -> None:
    if not answer.ok:
        raise CannotStart(f"{what}: {answer.detail}")
