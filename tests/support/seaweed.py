"""A real S3 server for tests: SeaweedFS on loopback, with keys, in a folder of its own.

It dies with the process that started it, whatever becomes of that process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "tidepool"
_WRITER = ("tidepool-writer", "writer-secret")
_READER = ("tidepool-reader", "reader-secret")  # may read and list, but write nothing
_START_S_MAX = 30.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class S3Server:
    """Where the server is and how to be somebody it knows."""

    endpoint: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 has to find in os.environ to use the bucket; nothing else is told to it."""
        return _environment(self.endpoint, _WRITER)

    @property
    def reader_environment(self) -> dict[str, str]:
        return _environment(self.endpoint, _READER)


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server with one empty bucket, `BUCKET`, ready for writes."""
    with tempfile.TemporaryDirectory(prefix="tidepool-s3-") as folder:
        # A port may be taken between its choice and its use; that is rare, so try again.
        for tries_left in (2, 1, 0):
            ports = _free_ports(8)
            process = _start(Path(folder), ports)
            try:
                endpoint = f"http://127.0.0.1:{ports[6]}"
                if not _wait_until_ready(process, endpoint):
                    if tries_left:
                        continue
                    log = (Path(folder) / "log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"weed did not start:\n{log}")
                yield S3Server(endpoint, process.pid)
                return
            finally:
                process.kill()
                process.wait()
                # weed puts these there whatever its own folders are.
                for port in ports:
                    for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                        socket_file.unlink(missing_ok=True)


def _environment(endpoint: str, keys: tuple[str, str]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": keys[0],
        "AWS_SECRET_ACCESS_KEY": keys[1],
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        # Whoever runs the tests may have an account of their own.
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _start(folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": keys[0], "secretKey": keys[1]}],
            "actions": actions,
        }
        for name, keys, actions in (
            ("writer", _WRITER, ["Admin", "Read", "Write", "List", "Tagging"]),
            ("reader", _READER, ["Read", "List"]),
        )
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir(exist_ok=True)
    command = [
        str(Path(sys.executable).with_name("weed")),
        "-logtostderr=true",
        "server",
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.peers=none",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=512",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.max=100",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        f"-filer.localSocket={folder}/filer.sock",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        f"-s3.localSocket={folder}/s3.sock",
        "-s3.config=s3.json",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-iam=false",
    ]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_tie
        )


def _tie() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_ready(process: subprocess.Popen[bytes], endpoint: str) -> bool:
    """Make the bucket and write into it, again until both work; False if the server ended."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=_WRITER[0],
        aws_secret_access_key=_WRITER[1],
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=10),
    )
    with contextlib.closing(client):
        end_s = time.monotonic() + _START_S_MAX
        while process.poll() is None and time.monotonic() < end_s:
            if _write_once(client):
                return True
            time.sleep(0.1)
    return False


def _write_once(client: BaseClient) -> bool:
    try:
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"!")
        client.delete_object(Bucket=BUCKET, Key="ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
