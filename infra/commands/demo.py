"""`demo`: a real model answers for real files, with one command."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra import demo_files, demo_rollout
from infra.commands.options import node_of, said
from infra.demo import ENDPOINT, DemoRun, demo, prepare
from infra.demo_model import DemoUnavailable
from infra.demo_rollout import demo_rollouts
from infra.demo_sleep import IDLE_S, sleep_and_wake
from infra.live import InPlace
from infra.local import UpOptions, running, stop_event, until
from infra.rollout_view import VIEW
from infra.stack import CannotStart, free_port
from pool.wire.frames import WireError
from registry_sync.logs import configure
from registry_sync.open import open_store

Work = Callable[[UpOptions, bool, list[bool]], Coroutine[None, None, None]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo_command)


def demo_command(
    exit: Annotated[bool, typer.Option("--exit", help="End by itself.")] = False,
    rollout: Annotated[
        bool,
        typer.Option("--rollout", help="Roll a good version out, and a bad one back."),
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Default: a fresh folder that goes away.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Default: a free one.")] = 0,
    admin_port: Annotated[int, typer.Option("--admin-port", help="Default: a free one.")] = 0,
) -> None:
    """Publish two versions of magika, split traffic 90/10, send this machine's files.

    With --rollout the second version takes over step by step, and a third, which fails a fifth of
    the files, is rolled back by itself.
    """
    ok = False
    with contextlib.ExitStack() as stack:
        if data is None:
            name = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="tidepool-demo-", ignore_cleanup_errors=True)
            )
            data = Path(name)
        node = node_of(data)
        options = UpOptions(
            node=node,
            registry=str(node.data / "registry"),
            port=port or free_port(),
            admin_port=admin_port or free_port(),
            log_level="info",
            log_folder=node.data / "logs",
        )
        with said():
            configure("supervisor", "warning")
            try:
                work = _rollouts if rollout else _files
                ok = asyncio.run(_run(work, options, stay=not exit))
            except (DemoUnavailable, TimeoutError, WireError) as error:
                raise CannotStart(str(error) or "an engine did not get warm in time") from None
    if not ok:
        raise typer.Exit(1)


async def _run(work: Work, options: UpOptions, *, stay: bool) -> bool:
    """Run a demo until its end, or until SIGTERM or SIGINT; tell whether it went well."""
    stop = stop_event()
    results: list[bool] = []
    options.node.prepare()
    await until(stop, asyncio.create_task(work(options, stay, results)))
    return bool(results) and results[0]


async def _files(options: UpOptions, stay: bool, results: list[bool]) -> None:
    store = await asyncio.to_thread(open_store, options.registry)
    _say("publishing magika, versions 1 and 2")
    key = await asyncio.to_thread(prepare, store, options.node.data)
    _say("starting registry sync, controller, worker and edge")
    async with running(options):
        run = await demo(options, key, _say)
        results.append(run.agreed == run.files)
        _show(run)
        _say(f"letting {ENDPOINT} sleep {IDLE_S:.0f} s after its last call")
        wake = await sleep_and_wake(options, store, run)
        print(f"\nasleep after {wake.asleep_after_s:.1f} s: no replica of any version is left")
        print(wake.summary())
        if stay:
            print(f"\n{run.summary()}\nserving on {run.url} until Ctrl-C", flush=True)
            await asyncio.Event().wait()
    print(run.summary(), flush=True)


async def _rollouts(options: UpOptions, stay: bool, results: list[bool]) -> None:
    store = await asyncio.to_thread(open_store, options.registry)
    _say("asking the magika package about this machine's files")
    samples = await asyncio.to_thread(demo_files.samples)
    _say("publishing magika, versions 1, 2 and 3")
    key = await asyncio.to_thread(demo_rollout.prepare, store, options.node.data, samples)
    _say("starting registry sync, controller, worker and edge")
    async with running(options):
        with InPlace(VIEW, lambda seen: (seen["id"], seen["step"], seen["state"])) as shown:
            run = await demo_rollouts(options, store, key, samples, shown, _say)
        results.append(run.is_ok)
        if stay:
            print(f"\n{run.summary()}\nserving on {options.url} until Ctrl-C", flush=True)
            await asyncio.Event().wait()
    print(run.summary(), flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(run: DemoRun) -> None:
    rows = [
        (
            _short(seen.sample.path),
            seen.answer.label,
            f"{seen.answer.score:.3f}",
            seen.variant,
            "agrees" if seen.agrees else f"magika says {seen.sample.answer.label}",
        )
        for seen in run.seen[: run.files]
    ]
    if sys.stdout.isatty():
        table = Table("file", "type", "score", "variant", "magika package")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        for row in rows:
            print("\t".join(row))
    print(
        f"\nvariants: stable {run.share('stable'):.0f} %, canary {run.share('canary'):.0f} %"
        f"   cache hits: {run.hits} of {len(run.seen)}"
        f"   latency ms: p50 {run.latency_ms(50):.1f}, p90 {run.latency_ms(90):.1f}, "
        f"p99 {run.latency_ms(99):.1f}\n"
    )
    head = f"curl -s -H 'Authorization: Bearer {run.key}'"
    print(f"{head} {run.url}/v2/models/{ENDPOINT}")
    print(f"{head} -i {run.url}/v2/models/{ENDPOINT}/infer --data-binary @{run.body_path}")
    print(f"{head} {run.url}/v2/models/{ENDPOINT}/versions/2/ready -i", flush=True)


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 60 else f"…{text[-59:]}"
