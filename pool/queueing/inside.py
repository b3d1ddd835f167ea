"""How much is inside one worker process, all edges and engines together: bounded by bytes."""

from __future__ import annotations

from typing import Final

# A tenant may hold so many times as much as is left for all.  Alone it gets four fifths of the
# bound; and there is always room for one more tenant, however much the others send.
SHARE_OF_REST: Final = 4


class Inside:
    """The bytes of the calls that wait or run, and whose they are.

    Args:
        bytes_max: of all together.

    Source:
        Dynamic thresholds (Choudhury and Hahne, IEEE/ACM ToN 1998), known from the shared memory
        of switches.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        # The whole mutable state: bytes, those of each tenant that has any, and calls ever.
        self.bytes = 0
        self._of: dict[str, int] = {}
        self.arrivals = 0

    def refusal(self, tenant: str, size_bytes: int) -> int:
        """Say whether so much more may come in.

        Returns:
            0: it may; 429: the tenant has more than its part, and others have some too; 503: it is
            full, or the tenant would leave no room.
        """
        own = self._of.get(tenant, 0)
        left = self.bytes_max - self.bytes
        if size_bytes > left:
            return 429 if 0 < self.bytes - own < own else 503
        if own and own + size_bytes > SHARE_OF_REST * (left - size_bytes):
            return 429 if self.bytes > own else 503
        return 0

    def add(self, tenant: str, size_bytes: int) -> None:
        """Take note of a call that comes in."""
        self.bytes += size_bytes
        self._of[tenant] = self._of.get(tenant, 0) + size_bytes

    def remove(self, tenant: str, size_bytes: int) -> None:
        """Take note that it is gone."""
        self.bytes -= size_bytes
        own = self._of.get(tenant, 0) - size_bytes
        if own:
            self._of[tenant] = own
        else:
            self._of.pop(tenant, None)
