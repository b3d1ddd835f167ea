"""The lock under which torch is imported, and archives are read.

torch imports most of itself when it reads its first archive, in circles: two threads that do so
from different ends see each other's half-made modules, which stay in the process for good.
What it reads is in variables of the process besides.
"""

from __future__ import annotations

import threading
from typing import Final

TORCH_LOCK: Final = threading.Lock()
