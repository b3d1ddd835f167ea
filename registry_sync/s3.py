"""A store in an S3 bucket, or in anything that speaks S3 with conditional writes.

Endpoint, region and credentials come from boto3's own environment and files.
botocore's retries are off; the ones here cover the reading of the body too and
know what a retry means for a conditional write. Import this module only to open
an s3:// URL: it is what loads boto3.

A conditional write whose answer is lost is tried again, and the second try may
then be refused because the first one landed. So every write carries a token in
its metadata, and a refusal after a retry is settled by reading the token of
what is there: ours means success, another one `Conflict` or, where ours may
have landed and been replaced since, `OutcomeUnknown`.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import urllib.parse
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import boto3.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from registry_sync.stores import (
    AccessDenied,
    BadStore,
    Conflict,
    Entry,
    NotFound,
    Object,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
    check_folder,
    check_key,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        CompleteMultipartUploadRequestTypeDef,
        ListObjectsV2RequestTypeDef,
    )

_T = TypeVar("_T")

TRIES_MAX = 5
_PAUSE_S_FIRST = 0.1  # doubles with every try; a random share of it is waited ("full jitter")
_PAUSE_S_MAX = 5.0
_CONNECT_S_MAX = 5.0
_READ_S_MAX = 20.0  # between two bytes of an answer, not for all of it
_CONNECTIONS_MAX = 32
_PART_BYTES = 8 << 20  # of a multipart upload; S3 takes 5 MiB to 5 GiB
_PARTS_MAX = 10_000  # S3's limit
_PARTS_AT_ONCE = 4
_HEARD_BYTES = 1 << 20  # after so many of a body it is known again that the server answers
_TOKEN = "tidepool-write"

# Codes that say "later" with a status that does not; every 5xx and 429 says so by its status.
_RETRYABLE_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "ConditionalRequestConflict", "OperationAborted", "BadDigest"}
)
_RETRYABLE_ERRORS = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    ChecksumError,
    FlexibleChecksumError,
    CredentialRetrievalError,
    ConnectionError,
    TimeoutError,
)
_DENIED_CODES = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})


class S3Store:
    """Objects below `prefix` ("" or ending in a slash) of a bucket."""

    def __init__(self, bucket: str, prefix: str, *, page_keys: int = 1000) -> None:
        self._bucket = bucket
        self._prefix = check_folder(prefix)
        self._page_keys = page_keys
        self._client = _make_client()
        # The whole mutable state: since when each call under way waits, and when the server was
        # last heard, for whomever.
        self._since_s: dict[object, float] = {}
        self._heard_s = 0.0

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".removesuffix("/")

    def get(self, key: str) -> Object:
        def get() -> Object:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._full(key))
            return Object(answer["Body"].read(), answer["ETag"].strip('"'))

        return self._call(key, get)

    def get_if_changed(self, key: str, etag: str | None) -> Object | None:
        if etag is None:
            return self.get(key)

        def get() -> Object | None:
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=self._full(key), IfNoneMatch=f'"{etag}"'
                )
            except ClientError as error:
                if _status(error) == 304:
                    return None
                raise
            return Object(answer["Body"].read(), answer["ETag"].strip('"'))

        return self._call(key, get)

    def put_new(self, key: str, data: bytes) -> str:
        token = f"new-{uuid.uuid4().hex}"

        def put() -> str:
            return self._client.put_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Body=data,
                IfNoneMatch="*",
                Metadata={_TOKEN: token},
            )["ETag"].strip('"')

        return self._write(key, put, token, "already there")

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        token = f"if-{uuid.uuid4().hex}"

        def put() -> str:
            return self._client.put_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Body=data,
                IfMatch=f'"{etag}"',
                Metadata={_TOKEN: token},
            )["ETag"].strip('"')

        return self._write(key, put, token, "changed by somebody else, or gone")

    def put_file_new(self, key: str, path: Path) -> str | None:
        with contextlib.suppress(NotFound):
            self.size(key)
            return None
        with open(path, "rb") as file:
            bytes_total = os.fstat(file.fileno()).st_size
            try:
                if bytes_total <= _PART_BYTES:
                    return self.put_new(key, file.read())
                return self._put_parts(key, file.fileno(), bytes_total, None)
            except Conflict:
                return None

    def put_file_if(self, key: str, path: Path, etag: str) -> str:
        with open(path, "rb") as file:
            bytes_total = os.fstat(file.fileno()).st_size
            if bytes_total <= _PART_BYTES:
                return self.put_if(key, file.read(), etag)
            return self._put_parts(key, file.fileno(), bytes_total, etag)

    def read(self, key: str, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        wanted = f"bytes={offset}-{offset + length - 1}"

        def get() -> bytes:
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=self._full(key), Range=wanted
                )
            except ClientError as error:
                if _status(error) == 416:
                    return b""
                raise
            parts = []
            while part := answer["Body"].read(_HEARD_BYTES):
                self._heard_s = time.monotonic()
                parts.append(part)
            return b"".join(parts)

        return self._call(key, get)

    def size(self, key: str) -> int:
        def head() -> int:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
            return answer["ContentLength"]

        return self._call(key, head)

    def list(self, prefix: str, recursive: bool = True) -> list[Entry]:
        folder = self._prefix + check_folder(prefix)
        entries: list[Entry] = []
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self._bucket,
            "Prefix": folder,
            "MaxKeys": self._page_keys,
            "Delimiter": "" if recursive else "/",
        }

        def page() -> str:
            answer = self._client.list_objects_v2(**request)
            for found in answer.get("Contents", []):
                # Consoles and some servers mark a folder by an empty object of its name.
                if not found["Key"].endswith("/"):
                    key = found["Key"].removeprefix(self._prefix)
                    entries.append(Entry(key, found["ETag"].strip('"'), found["Size"]))
            return answer.get("NextContinuationToken", "") if answer["IsTruncated"] else ""

        while True:
            token = self._call(prefix or "/", page)
            if not token:
                return sorted(entries, key=lambda entry: entry.key.encode())
            request["ContinuationToken"] = token

    def delete(self, key: str) -> None:
        def delete() -> None:
            self._client.delete_object(Bucket=self._bucket, Key=self._full(key))

        with contextlib.suppress(NotFound):
            self._call(key, delete)

    def silent_s(self) -> float:
        now_s = time.monotonic()
        since_s = min(list(self._since_s.values()), default=now_s)
        return now_s - max(since_s, self._heard_s)

    def close(self) -> None:
        self._client.close()

    def _full(self, key: str) -> str:
        return check_key(self._prefix + check_key(key))

    def _write(self, key: str, put: Callable[[], str], token: str, reason: str) -> str:
        """Carry out one conditional write and return the new etag; see the module's docstring."""
        tries = 0

        def counted() -> str:
            nonlocal tries
            tries += 1
            return put()

        try:
            return self._call(key, counted)
        except (Conflict, NotFound) as error:
            # AWS answers If-Match on a missing key with 404, SeaweedFS with 412.
            if tries == 1:
                raise Conflict(key, reason) from error
        return self._settle(key, token, reason)

    def _settle(self, key: str, token: str, reason: str) -> str:
        """Decide what became of a retried write that was refused in the end."""

        def head() -> tuple[str, str]:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
            return answer["Metadata"].get(_TOKEN, ""), answer["ETag"].strip('"')

        try:
            found, etag = self._call(key, head)
        except NotFound:
            raise OutcomeUnknown(key) from None
        if found == token:
            return etag
        # Somebody else's creation stands, so ours never did.
        if token.startswith("new-") and found.startswith("new-"):
            raise Conflict(key, reason)
        raise OutcomeUnknown(key)

    def _put_parts(self, key: str, descriptor: int, bytes_total: int, etag: str | None) -> str:
        """Upload an open file in parts, make it visible at once at the end, return the new etag.

        Args:
            etag: of the object to replace; None: there must be none.

        Raises:
            Conflict: the key was taken, or its object changed, meanwhile.
        """
        part_bytes = max(_PART_BYTES, -(-bytes_total // _PARTS_MAX))
        full = self._full(key)
        token = f"{'if' if etag else 'new'}-{uuid.uuid4().hex}"

        def begin() -> str:
            return self._client.create_multipart_upload(
                Bucket=self._bucket, Key=full, Metadata={_TOKEN: token}
            )["UploadId"]

        upload = self._call(key, begin)

        def send(index: int) -> CompletedPartTypeDef:
            data = os.pread(descriptor, part_bytes, index * part_bytes)

            def put() -> str:
                return self._client.upload_part(
                    Bucket=self._bucket, Key=full, UploadId=upload, PartNumber=index + 1, Body=data
                )["ETag"]

            return {"ETag": self._call(key, put), "PartNumber": index + 1}

        try:
            with ThreadPoolExecutor(_PARTS_AT_ONCE) as threads:
                parts = list(threads.map(send, range(-(-bytes_total // part_bytes))))

            request: CompleteMultipartUploadRequestTypeDef = {
                "Bucket": self._bucket,
                "Key": full,
                "UploadId": upload,
                "MultipartUpload": {"Parts": parts},
            }
            if etag is None:
                request["IfNoneMatch"] = "*"
            else:
                request["IfMatch"] = f'"{etag}"'

            def complete() -> str:
                return self._client.complete_multipart_upload(**request)["ETag"].strip('"')

            # A retry after a lost answer finds no such upload any more: `_write` settles that.
            reason = "already there" if etag is None else "changed by somebody else, or gone"
            return self._write(key, complete, token, reason)
        except BaseException:
            # Parts of an upload that is never completed are stored, and paid for, for ever.
            with contextlib.suppress(StoreError):
                self._call(key, lambda: self._abort(full, upload))
            raise

    def _abort(self, full: str, upload: str) -> None:
        self._client.abort_multipart_upload(Bucket=self._bucket, Key=full, UploadId=upload)

    def _call(self, key: str, operation: Callable[[], _T]) -> _T:
        """Run an operation, again while it fails in a way that may pass, and name its failure."""
        me = object()
        self._since_s[me] = time.monotonic()
        try:
            return self._tried(key, operation)
        finally:
            del self._since_s[me]

    def _tried(self, key: str, operation: Callable[[], _T]) -> _T:
        tries = 0
        while True:
            tries += 1
            try:
                result = operation()
                self._heard_s = time.monotonic()
                return result
            except ClientError as error:
                if not _is_retryable(error):
                    raise self._named(key, error) from error
                failure: Exception = error
            except _RETRYABLE_ERRORS as error:
                failure = error
            except BotoCoreError as error:
                raise BadStore(f"{self.url}: {error}") from error
            if tries == TRIES_MAX:
                raise StoreUnavailable(f"{key}: {failure} ({tries} tries, {self.url})") from failure
            pause_s = min(_PAUSE_S_MAX, _PAUSE_S_FIRST * 2 ** (tries - 1))
            time.sleep(random.uniform(0.0, pause_s))

    def _named(self, key: str, error: ClientError) -> StoreError:
        code, status = _code(error), _status(error)
        if code == "NoSuchBucket":
            # Not NotFound: to callers that would look like an empty registry.
            return BadStore(f"{self.url}: there is no such bucket")
        if status == 404:
            return NotFound(key, self.url)
        if status == 412:
            return Conflict(key, "refused by its condition")
        if status in (401, 403) or code in _DENIED_CODES:
            detail = f"{code} from {self.url}"
            if status == 403 and code in ("AccessDenied", "403"):
                detail += "; S3 says so of a missing object too where listing is not allowed"
            return AccessDenied(key, detail)
        if status in (301, 307):
            return BadStore(f"{self.url}: the bucket is in another region; set AWS_DEFAULT_REGION")
        return StoreError(f"{key}: {error} ({self.url})")


def _make_client() -> S3Client:
    # One of our own, because boto3's default session must not be used by several threads.
    session = boto3.session.Session()

    def make(addressing_style: Literal["auto", "path"]) -> S3Client:
        return session.client(
            "s3",
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=_CONNECT_S_MAX,
                read_timeout=_READ_S_MAX,
                max_pool_connections=_CONNECTIONS_MAX,
                s3={"addressing_style": addressing_style},
            ),
        )

    try:
        client = make("auto")
        host = urllib.parse.urlsplit(client.meta.endpoint_url).hostname or ""
        if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            return client
        # Servers other than AWS seldom have a host name for every bucket.
        client.close()
        client = make("path")
        client.meta.events.register("before-call.s3", _stay_here)
        return client
    except (BotoCoreError, ValueError) as error:
        raise BadStore(f"S3 cannot be set up: {error}") from error


def _stay_here(params: dict[str, Any], **_: object) -> None:
    """Keep botocore from following a redirection: regions are Amazon's alone.

    It would ask for the bucket's region, outside the prefix, and be redirected there as well,
    until the stack overflows.
    """
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _is_retryable(error: ClientError) -> bool:
    status = _status(error)
    return status >= 500 or status == 429 or _code(error) in _RETRYABLE_CODES
