"""One look at AWS: boto3's own environment and files, short waits, no second tries."""

from __future__ import annotations

import urllib.parse
from typing import Any, Final

import boto3.session
from botocore.config import Config

_CONNECT_S_MAX: Final = 5.0
_READ_S_MAX: Final = 10.0


class Aws:
    """The clients of one examination.

    Raises:
        BotoCoreError: the profile that the environment names is not there.
    """

    def __init__(self) -> None:
        self.session = boto3.session.Session()
        self._clients: dict[str, Any] = {}

    @property
    def region(self) -> str:
        """The region of this environment; empty: none is set."""
        return self.session.region_name or ""

    def is_amazons(self, service: str) -> bool:
        """Tell whether a service is asked of AWS itself, and not of a server that speaks like it.

        Raises:
            BotoCoreError, ValueError: there is no client for it.
        """
        host = urllib.parse.urlsplit(self.client(service).meta.endpoint_url).hostname or ""
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))

    def client(self, service: Any) -> Any:
        """Return the client of a service; S3 and STS do without a region.

        Raises:
            BotoCoreError, ValueError: the environment has no region, or no good endpoint.
        """
        if service not in self._clients:
            self._clients[service] = self._make(service)
        return self._clients[service]

    def _make(self, service: Any) -> Any:
        config = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=_CONNECT_S_MAX,
            read_timeout=_READ_S_MAX,
            # A bucket's name may hold dots, which no certificate covers; and it is the form that
            # every server knows.
            s3={"addressing_style": "path"},
        )
        region = self.region or ("us-east-1" if service in ("s3", "sts") else None)
        client = self.session.client(service, region_name=region, config=config)
        if service == "s3":
            client.meta.events.register("before-call.s3", _stay_here)
        return client


def _stay_here(params: dict[str, Any], **_: object) -> None:
    """Keep botocore from following a bucket into its region: where it is, is to be told."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True
