"""A wall clock that tests set forward and back for processes that they start; monotonic ones go on.

What `faketime` does, in so few lines that a compiler is enough: the C library's calls are answered
with the real time and an offset that lies in a file.  Whoever is given `environment` sees it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static const volatile long *offset_s(void) {
    static const long none = 0;
    static const volatile long *found;
    if (!found) {
        const char *path = getenv("STEPPED_CLOCK");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *at = fd < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
        found = at == MAP_FAILED ? &none : at;
    }
    return found;
}

int clock_gettime(clockid_t id, struct timespec *ts) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, ts);
    if (!code && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) ts->tv_sec += *offset_s();
    return code;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
    struct timespec ts;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &ts);
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (at) *at = ts.tv_sec;
    return ts.tv_sec;
}
"""


class SteppedClock:
    """The offset that processes with `environment` add to the time of day."""

    def __init__(self, folder: Path) -> None:
        """Compile what is preloaded, into `folder`."""
        source, library = folder / "clock.c", folder / "clock.so"
        source.write_text(_SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self._file = folder / "offset"
        self.step(0)
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._file)}

    def step(self, offset_s: int) -> None:
        """Let it be so many seconds later than it is, from now on and for everybody."""
        content = offset_s.to_bytes(8, "little", signed=True)
        if not self._file.exists():
            self._file.write_bytes(content)
            return
        fd = os.open(self._file, os.O_WRONLY)
        try:
            os.pwrite(fd, content, 0)  # in place: it is mapped
        finally:
            os.close(fd)
