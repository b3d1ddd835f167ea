"""From a URL to its store, or to its queue. The only place that knows which there are."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from registry_sync.directory import DirectoryStore
from registry_sync.stores import BadStore, Store, StoreUnavailable, check_folder

if TYPE_CHECKING:
    from registry_sync.notifications import Queue


def open_existing(url: str) -> Store:
    """Open a registry as `open_store` does, but never make a directory.

    Raises:
        BadStore: see `open_store`.
        StoreUnavailable: there is no such registry, as far as this machine sees.
    """
    folder = _folder_of(url)
    if folder is not None and not folder.is_dir():
        raise StoreUnavailable(f"the registry's folder {folder} is not there; is it mounted?")
    return open_store(url)


def _folder_of(url: str) -> Path | None:
    if "://" not in url:
        return Path(url).expanduser() if url else None
    parts = urllib.parse.urlsplit(url)
    return Path(urllib.parse.unquote(parts.path)) if parts.scheme == "file" else None


def open_store(url: str) -> Store:
    """Open the store behind `s3://bucket/prefix`, `file:///path` or a plain path.

    A directory is made if it does not exist; a bucket is not touched before the
    first use. S3 takes everything else (endpoint, region, credentials) from
    boto3's own environment and files.

    Raises:
        BadStore: the URL names no store, or the directory cannot be made.
    """
    if "://" not in url:
        if not url:
            raise BadStore("the registry URL is empty; give s3://bucket/prefix or a path")
        return DirectoryStore(Path(url).expanduser())
    parts = urllib.parse.urlsplit(url)
    if parts.query or parts.fragment:
        raise BadStore(f"registry URL {url!r}: '?' and '#' have no meaning here")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise BadStore(f"registry URL {url!r}: a file URL has three slashes, file:///path")
        return DirectoryStore(Path(urllib.parse.unquote(parts.path)))
    if parts.scheme == "s3":
        if not parts.netloc or "@" in parts.netloc or ":" in parts.netloc:
            raise BadStore(f"registry URL {url!r}: expected s3://bucket or s3://bucket/prefix")
        try:
            prefix = check_folder(parts.path.strip("/"))
        except ValueError as error:
            raise BadStore(f"registry URL {url!r}: {error}") from error
        # Here and not above, because boto3 takes a third of a second to import and a directory
        # needs none of it.
        from registry_sync.s3 import S3Store  # noqa: PLC0415

        return S3Store(parts.netloc, prefix)
    raise BadStore(f"registry URL {url!r}: {parts.scheme}:// is not known; use s3:// or a path")


def open_queue(url: str, registry: str) -> Queue:
    """Open the queue that an s3:// registry tells of its changes.

    Raises:
        QueueError: SQS cannot be set up.
    """
    # Here and not above, as for S3.
    from registry_sync.notifications import Queue  # noqa: PLC0415

    return Queue(url, registry)
