"""Which log levels the edges of this node show: as started, or as set at run time.

Triton's logging extension has a switch for each level.  One edge process is told; it leaves the
settings in a file for its siblings, who look every second, and for whoever takes a sibling's place.
They end with the supervisor that started these processes: the next start goes by its own options.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from edge.errors import BadRequest, Unavailable, quote
from registry_sync import logs

LOOK_S = 1.0
VERBOSE_MAX = 16
# Where lines go and what form they have is fixed: one JSON object a line, on stderr.
FIXED: Final[dict[str, str]] = {"log_file": "", "log_format": "ISO8601"}

_log = structlog.get_logger()


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown; the names are the extension's."""

    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: int  # from 1 on what is only of use for finding a bug is shown

    @classmethod
    def now(cls) -> LogSettings:
        """Return what this process shows."""
        shown = logs.shown()
        return cls(
            log_info="info" in shown,
            log_warning="warning" in shown,
            log_error="error" in shown,
            log_verbose_level=int("debug" in shown),
        )

    def levels(self) -> set[str]:
        """Return the levels to show; what ends a process always is."""
        wanted = {
            "debug": self.log_verbose_level > 0,
            "info": self.log_info,
            "warning": self.log_warning,
            "error": self.log_error,
            "critical": True,
        }
        return {level for level, is_wanted in wanted.items() if is_wanted}

    def changed(self, given: dict[str, Any]) -> LogSettings:
        """Return the settings with those of a request in place of their old values.

        Raises:
            BadRequest: no such setting, a value of another kind, or one that is fixed here.
        """
        changes: dict[str, bool | int] = {}
        for name, value in given.items():
            if name in FIXED:
                if value != FIXED[name]:
                    raise BadRequest(f"{name} cannot be changed here; it is {FIXED[name]!r}")
            elif name == "log_verbose_level":
                if type(value) is not int or not 0 <= value <= VERBOSE_MAX:
                    raise BadRequest(f"{name} must be a whole number from 0 to {VERBOSE_MAX}")
                changes[name] = value
            elif name in self.__struct_fields__:
                if type(value) is not bool:
                    raise BadRequest(f"{name} must be true or false")
                changes[name] = value
            else:
                raise BadRequest(f"there is no log setting {quote(name)}")
        return msgspec.structs.replace(self, **changes)

    def shown(self) -> dict[str, Any]:
        """Return the settings as the extension answers them."""
        return {**msgspec.structs.asdict(self), **FIXED}


class _Kept(msgspec.Struct, frozen=True):
    """The file."""

    supervisor: int  # pid
    settings: LogSettings


_kept_of = msgspec.json.Decoder(_Kept)


class SharedLogSettings:
    """The settings of all edge processes of a node."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "log_settings.json"
        # The whole mutable state: the settings, and which file they were read from.
        self._settings: LogSettings | None = None
        self._seen_ns = 0

    @property
    def settings(self) -> LogSettings:
        """What is shown now."""
        return self._settings or LogSettings.now()

    def set(self, settings: LogSettings) -> None:
        """Go by new settings, and let the siblings know.

        Raises:
            Unavailable: they cannot be told; nothing was changed.
        """
        partial = self._file.with_suffix(f".{os.getpid()}.partial")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(_Kept(os.getppid(), settings)))
            partial.replace(self._file)
        except OSError as error:
            _log.warning("log_settings_not_kept", error=str(error))
            raise Unavailable(
                "the settings cannot be kept for the other processes of this node",
                retry_after_s=1.0,
            ) from None
        self._apply(settings)

    def look(self) -> None:
        """Go by what a sibling, or the process before this one, has left."""
        try:
            changed_ns = self._file.stat().st_mtime_ns
            if changed_ns == self._seen_ns:
                return
            self._seen_ns = changed_ns
            kept = _kept_of.decode(self._file.read_bytes())
        except (OSError, msgspec.DecodeError):
            return  # nobody has set anything
        if kept.supervisor == os.getppid():
            self._apply(kept.settings)

    def _apply(self, settings: LogSettings) -> None:
        if settings != self._settings:
            self._settings = settings
            logs.show(settings.levels())

    async def follow_forever(self) -> None:
        """Look again and again."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)
