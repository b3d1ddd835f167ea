"""`keys signing create|list|trust|revoke`: who may publish what nodes use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from infra.commands.options import DATA_DEFAULT, Data, Json, node_of, print_json, said
from infra.printable import printable
from infra.stack import CannotStart
from registry_sync.signing import PublicKey, make_key, parse_public
from registry_sync.trust import (
    TrustedKeys,
    change_keys,
    read_keys_file,
    with_revoked,
    with_trusted,
)

File = Annotated[
    Path | None,
    typer.Option("--file", help="The node's file of trusted keys; default: the running stack's."),
]


def family() -> typer.Typer:
    """Return the commands."""
    made = typer.Typer(
        no_args_is_help=True,
        help="Keys that sign versions, and whom a node trusts (--require-signed).",
    )
    made.command("create")(create_command)
    made.command("list")(list_command)
    made.command("trust")(trust_command)
    made.command("revoke")(revoke_command)
    return made


def create_command(
    path: Annotated[Path, typer.Argument(metavar="KEYFILE", help="Where the private key goes.")],
    name: Annotated[str, typer.Option(help="For people: whose key it is.")] = "",
    json: Json = False,
) -> None:
    """Make a key: KEYFILE stays with who publishes, KEYFILE.pub goes to the nodes."""
    with said():
        public = make_key(Path(os.path.abspath(path)), name)
    if json:
        print_json({**_row(public), "file": str(path), "public": f"{path}.pub"})
        return
    typer.echo(
        f"{path}: the private key; whoever has it can publish.  {path}.pub: for nodes.", err=True
    )
    typer.echo(public.line)


def list_command(file: File = None, data: Data = DATA_DEFAULT, json: Json = False) -> None:
    """List the keys that a node trusts, and those that it no longer does."""
    with said():
        keys = read_keys_file(_file(file, data))
    if json:
        print_json(_rows(keys))
        return
    for key in keys.trusted.values():
        typer.echo(printable(f"{key.id}  trusted  {key.name}".rstrip()))
    for key in keys.revoked.values():
        typer.echo(printable(f"{key.id}  revoked  {key.name}".rstrip()))


def trust_command(
    key: Annotated[str, typer.Argument(metavar="KEY", help="KEYFILE.pub, or its line.")],
    file: File = None,
    data: Data = DATA_DEFAULT,
    json: Json = False,
) -> None:
    """Let this node use what a key has signed."""
    with said():
        public = _public(key)
        _change(_file(file, data), lambda lines: with_trusted(lines, public))
    if json:
        print_json({**_row(public), "trusted": True})
    else:
        typer.echo(printable(f"trusted {public}"))


def revoke_command(
    id: str, file: File = None, data: Data = DATA_DEFAULT, json: Json = False
) -> None:
    """Let this node no longer use anything that a key has signed; running processes follow."""
    with said():
        _change(_file(file, data), lambda lines: with_revoked(lines, id))
    if json:
        print_json({"id": id, "revoked": True})
    else:
        typer.echo(printable(f"revoked {id}"))


def _change(path: Path, change: Callable[[Sequence[str]], list[str]]) -> None:
    if not path.parent.is_dir():
        raise CannotStart(f"--file {path}: its folder is not there")
    change_keys(path, change)


def _file(file: Path | None, data: Path) -> Path:
    if file is not None:
        return Path(os.path.abspath(file))
    stack = node_of(data).read_stack()
    if stack is None or not stack.require_signed:
        raise CannotStart("say with --file where this node's trusted keys are")
    return Path(stack.require_signed)


def _public(key: str) -> PublicKey:
    if ":" in key and not Path(key).exists():
        return parse_public(key)
    text = Path(key).read_text()
    if "PRIVATE KEY" in text:
        raise CannotStart(f"{key} is a private key, which no node needs; give {key}.pub")
    return parse_public(text)


def _row(key: PublicKey) -> dict[str, object]:
    return {"id": key.id, "name": key.name, "key": key.line.split()[0]}


def _rows(keys: TrustedKeys) -> list[dict[str, object]]:
    trusted = [{**_row(key), "state": "trusted"} for key in keys.trusted.values()]
    return trusted + [{**_row(key), "state": "revoked"} for key in keys.revoked.values()]
