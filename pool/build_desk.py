"""Who builds which plan: one build per key at a time, given to workers that can.

A plan is wanted by a worker that runs a version and looks for something faster (`wanted`), or by a
user (a wish in the registry).  A worker knows the key of what it wants; of a wish nobody does until
a worker has been asked to build it, for the key depends on that worker's runtime too.

    waiting ─Ask→ asked ─building→ building ─built→ built ─Tell→ who runs the version
       ↑            └── failed, lost, silent ──┘      │
       └────────── after a pause that doubles ────────┘ wanted again: it is gone, or no good

Two plans that may turn out to be one (the same artifact, device class and engine, and the key of
one not said yet) are never under way together.  Who is asked and does not answer, or builds and
does not answer when asked how it goes, loses the build to another.  Pure: knows no clock and sends
nothing; `build_orders` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Final

from pool.build_jobs import (
    BACKOFF_S_MAX,
    Ask,
    Attempt,
    Drop,
    Job,
    Ref,
    Report,
    Seat,
    Target,
    Tell,
    backoff_s,
)

ANSWER_S_MAX: Final = 30.0  # who was asked so long ago and has said nothing never heard it
SILENCE_S_MAX: Final = 45.0  # who builds is asked now and then; three questions unanswered
ASK_AGAIN_S: Final = 2.0  # until it has answered for the first time
QUESTION_S: Final = 15.0  # how it goes
UNSURE_S: Final = 75.0  # who wants a plan and has dialled says so every 30 s
LOST_S_MAX: Final = 10.0  # a worker that lost its connection dials again before, and builds on
OTHER_KEY_S: Final = 60.0  # for whom it is another key is asked again after this
CALM_S: Final = 2 * BACKOFF_S_MAX  # after so long, what failed before is forgotten
LOOK_AGAIN_S: Final = 3600.0  # a wished plan is looked for again: it may have been lost
STALL_S: Final = 5.0  # rounds that come so late say nothing about who was silent meanwhile
JOBS_MAX: Final = 4096
TEXT_CHARS_MAX: Final = 1000
_ENDS: Final = ("other", "dropped", "unwanted")  # reports that make nothing known


class BuildDesk:
    """Which plans are wanted, by whom they are built, and who is to hear of it."""

    def __init__(self) -> None:
        # The whole mutable state: workers by id, plans by key (or wish), what users wish,
        # artifacts by version, outcomes counted, and when the last round was.
        self.seats: dict[str, Seat] = {}
        self.jobs: dict[str, Job] = {}
        self.outcomes: Counter[str] = Counter(asked=0, built=0, failed=0, lost=0, refused=0)
        self._wishes: frozenset[Target] = frozenset()
        self._artifacts: Mapping[Ref, str] = {}
        self._stepped_s = inf

    # what happens

    def join(
        self, worker: str, incarnation: str, device_class: str, builds: Iterable[str], now_s: float
    ) -> None:
        """Take in a worker, or one that dialled again: then it says anew how its builds go."""
        old = self.seats.get(worker)
        if old is not None and old.incarnation != incarnation:
            self._lose(worker, "its process has ended", now_s)
        self.seats[worker] = Seat(incarnation, device_class, frozenset(builds))
        for job in self.jobs.values():
            _unseat(job, worker, now_s)
            if attempt := job.attempts.get(worker):
                job.attempts[worker] = Attempt(attempt.target, now_s, -inf)

    def leave(self, worker: str, now_s: float, *, is_final: bool = False) -> None:
        """Take note of a lost connection; `is_final`: the worker had said that it would end."""
        seat = self.seats.get(worker)
        if seat is None:
            return
        seat.gone_s = now_s
        if is_final:
            self._lose(worker, "it has ended", now_s)
            del self.seats[worker]

    def run(self, worker: str, refs: Iterable[Ref], *, is_draining: bool = False) -> None:
        """Take note of the versions that a worker runs or loads."""
        if seat := self.seats.get(worker):
            seat.refs, seat.is_draining = frozenset(refs), is_draining

    def wish(self, wishes: Iterable[Target], artifacts: Mapping[Ref, str]) -> None:
        """Take the users' wishes, all of them, and the artifacts' digests of known versions."""
        self._artifacts = artifacts
        self._wishes = frozenset(wishes)
        for job in self.jobs.values():
            job.wishes &= self._wishes

    def report(self, worker: str, report: Report, now_s: float) -> None:
        """Take what a worker says; it may come late, twice, or of what nobody asked for."""
        seat = self.seats.get(worker)
        if seat is None:
            return
        asked = self._asked(worker, report)
        job = self.jobs.get(report.key) if report.key else asked
        if report.key and asked is not None and asked is not job:
            if asked.key:
                _put_off(asked, worker, now_s)  # that key is not the one that it builds
            else:
                job = self._resolve(asked, report)
        job = job or self._make(report, now_s)
        if job is None:
            return
        job.used_s = now_s
        if report.key and report.state not in _ENDS:
            job.targets.setdefault(report.target)
        self._take(job, worker, report, now_s)

    def _take(self, job: Job, worker: str, report: Report, now_s: float) -> None:
        match report.state:
            case "wanted" if report.key:
                self._want(job, worker, report.target, now_s)
            case "building":
                fresh = Attempt(report.target, now_s, now_s)
                job.attempts.setdefault(worker, fresh).said_s = now_s
                job.is_built = False
                job.error = report.reason[:TEXT_CHARS_MAX] or job.error
            case "built" if report.key:
                ended = job.attempts.pop(worker, None)
                self.outcomes["built"] += ended is not None and ended.said_s is not None
                # Who was asked and has not begun need not begin.
                job.attempts = {w: a for w, a in job.attempts.items() if a.said_s is not None}
                job.is_built, job.built_s, job.error = True, now_s, ""
                job.failures = job.losses = 0
            case "failed":
                self._fail(job, worker, report, now_s)
            case "other" if worker in job.attempts:
                _put_off(job, worker, now_s)
            case "dropped":
                job.attempts.pop(worker, None)
            case "unwanted":
                job.wanters.discard((worker, report.target.ref))
                job.refused.pop(worker, None)
            case "refused" if report.key:
                self.outcomes["refused"] += worker not in job.refused
                job.refused[worker] = report.reason[:TEXT_CHARS_MAX]
                job.wanters.discard((worker, report.target.ref))
            case _:
                pass  # of a later release

    def _want(self, job: Job, worker: str, target: Target, now_s: float) -> None:
        wanter = (worker, target.ref)
        for other in self.jobs.values():
            if other is not job and target in other.targets:
                other.wanters.discard(wanter)  # it had another key before
        job.wanters.add(wanter)
        if job.is_built and wanter in job.told:
            # It has looked: the plan is not there any more, or must not be loaded.
            job.rebuilds = 1 if now_s - job.built_s > CALM_S else job.rebuilds + 1
            job.is_built, job.not_before_s = False, now_s + backoff_s(job.rebuilds - 1)
            job.error = f"{worker}: the plan is not there any more, or is no good"
        job.told.discard(wanter)

    def _fail(self, job: Job, worker: str, report: Report, now_s: float) -> None:
        was_at_it = job.attempts.pop(worker, None) is not None
        job.failed_at[worker] += 1
        job.held_s[worker] = now_s + min(report.retry_s, BACKOFF_S_MAX)
        if job.is_built or job.attempts or (job.failures and not was_at_it):
            return  # late: others were given it since
        self.outcomes["failed"] += 1
        job.failures += 1
        job.not_before_s = now_s + backoff_s(job.failures)
        job.error = f"{worker}: {report.reason}"[:TEXT_CHARS_MAX]

    def _lose(self, worker: str, why: str, now_s: float) -> None:
        """Take everything from a worker that is gone."""
        for job in self.jobs.values():
            _unseat(job, worker, now_s)
            if worker in job.attempts:
                self._lose_attempt(job, worker, why, now_s)

    def _lose_attempt(self, job: Job, worker: str, why: str, now_s: float) -> None:
        """Give another worker the chance at once; a build that kills its builders has to wait."""
        del job.attempts[worker]
        self.outcomes["lost"] += 1
        job.failed_at[worker] += 1
        if not (job.is_built or job.attempts):
            job.losses += 1
            job.not_before_s = now_s + backoff_s(job.failures + job.losses - 1)
            job.error = f"{worker}: {why}"

    # jobs

    def _look(self, target: Target, now_s: float) -> None:
        """Let somebody see to a wish whose key is not known, or may be another one by now."""
        name = _name_of(target)
        if name not in self.jobs and self._has_room():
            self.jobs[name] = Job("", {target: None}, now_s, wishes={target})

    def _make(self, report: Report, now_s: float) -> Job | None:
        if not report.key or report.state in _ENDS or not self._has_room():
            return None
        job = self.jobs[report.key] = Job(report.key, {report.target: None}, now_s)
        if report.state == "building":
            job.unsure_s = now_s + UNSURE_S
        return job

    def _has_room(self) -> bool:
        """See that there is room for one more, at the cost of what is least missed."""
        if len(self.jobs) < JOBS_MAX:
            return True
        idle = [
            (job.used_s, name)
            for name, job in self.jobs.items()
            if not (job.attempts or job.wishes) and (job.is_built or not job.is_needed)
        ]
        if idle:
            del self.jobs[min(idle)[1]]
        return bool(idle)

    def _asked(self, worker: str, report: Report) -> Job | None:
        """Return what a worker's report may answer."""
        of_key = self.jobs.get(report.key)
        if of_key is not None and worker in of_key.attempts:
            return of_key
        if report.state in ("wanted", "unwanted", "refused", "other"):
            return None
        for job in self.jobs.values():
            attempt = job.attempts.get(worker)
            if attempt is None or attempt.target.ref != report.target.ref:
                continue
            # Who builds one key already may say what it likes of another.
            is_open = not report.key or not job.key or attempt.said_s is None
            if is_open and attempt.target.may_be(report.target):
                return job
        return None

    def _resolve(self, asked: Job, report: Report) -> Job:
        """The key of a wish is known: it is one job with all others of that key."""
        del self.jobs[_name_of(asked.target)]
        for other in self.jobs.values():
            other.wishes -= asked.wishes
        job = self.jobs.get(report.key)
        if job is None:
            asked.key, asked.targets = report.key, {report.target: None}
            self.jobs[report.key] = asked
            return asked
        job.wishes |= asked.wishes
        job.attempts.update(asked.attempts)
        return job

    # rounds

    def step(self, now_s: float) -> list[Ask | Drop | Tell]:
        """Return what is to be sent now; call it again after reports, and every second."""
        self._pardon(now_s)
        for worker, seat in list(self.seats.items()):
            if seat.gone_s is not None and now_s - seat.gone_s > LOST_S_MAX:
                self._lose(worker, "its connection is lost", now_s)
                del self.seats[worker]
        for job in list(self.jobs.values()):
            self._end_silent(job, now_s)
            if job.is_built and now_s - job.built_s > LOOK_AGAIN_S and job.wishes:
                job.built_s = now_s
                for target in sorted(job.wishes):
                    self._look(target, now_s)
        seen = {target for job in self.jobs.values() for target in job.wishes}
        for target in sorted(self._wishes - seen):
            self._look(target, now_s)
        self._forget(now_s)
        return [*self._questions(now_s), *self._orders(now_s), *self._news()]

    def _pardon(self, now_s: float) -> None:
        """After a stall of this process: whoever was silent may have spoken meanwhile."""
        if now_s - self._stepped_s > STALL_S:
            for seat in self.seats.values():
                seat.gone_s = None if seat.gone_s is None else now_s
            for job in self.jobs.values():
                for attempt in job.attempts.values():
                    attempt.since_s = now_s
                    attempt.said_s = None if attempt.said_s is None else now_s
        self._stepped_s = now_s

    def _end_silent(self, job: Job, now_s: float) -> None:
        for worker, attempt in list(job.attempts.items()):
            if self.seats[worker].gone_s is not None:
                continue
            if attempt.said_s is None and now_s - attempt.since_s > ANSWER_S_MAX:
                self._lose_attempt(job, worker, "did not answer when asked to build", now_s)
            elif attempt.said_s is not None and now_s - attempt.said_s > SILENCE_S_MAX:
                self._lose_attempt(job, worker, "does not say any more that it builds", now_s)

    def _forget(self, now_s: float) -> None:
        for name, job in list(self.jobs.items()):
            if job.is_needed or job.refused:
                job.used_s = now_s
            elif job.is_built or job.attempts:
                continue
            elif not job.key or now_s - job.used_s > CALM_S:
                # What failed stays for a while: its worker comes back and wants it again.
                del self.jobs[name]

    def _questions(self, now_s: float) -> Iterator[Ask | Drop]:
        for job in self.jobs.values():
            is_over = not (job.is_needed or job.is_built) and now_s >= job.unsure_s
            for worker, attempt in job.attempts.items():
                if is_over:
                    if now_s - attempt.dropped_s >= ASK_AGAIN_S:
                        attempt.dropped_s = now_s
                        yield Drop(worker, attempt.target, job.key)
                    continue
                pause_s = ASK_AGAIN_S if attempt.said_s is None else QUESTION_S
                if self.seats[worker].gone_s is None and now_s - attempt.asked_s >= pause_s:
                    attempt.asked_s = now_s
                    yield Ask(worker, attempt.target, job.key)

    def _orders(self, now_s: float) -> Iterator[Ask]:
        busy = {worker for job in self.jobs.values() for worker in job.attempts}
        free = {
            worker: seat
            for worker, seat in self.seats.items()
            if worker not in busy and seat.gone_s is None and not seat.is_draining
        }
        # What serves already and could serve better goes before what only may be of use one day.
        for job in sorted(self.jobs.values(), key=lambda job: not job.wanters):
            if not free:
                return
            if not job.is_due(now_s) or self.rival(job) is not None:
                continue
            fit = [
                worker
                for worker, seat in free.items()
                if seat.can_build(job.target) and job.held_s.get(worker, -inf) <= now_s
            ]
            if not fit:
                continue
            _, worker = min((self._rank(job, one), one) for one in fit)
            free.pop(worker).asked_s = now_s
            target = job.target_for(worker)
            job.attempts[worker] = Attempt(target, now_s, now_s)
            self.outcomes["asked"] += 1
            yield Ask(worker, target, job.key)

    def _rank(self, job: Job, worker: str) -> tuple[int, bool, bool, float]:
        """Order workers: who has not failed, whose key it is, who has the device, who rested."""
        seat = self.seats[worker]
        is_own = any(one == worker for one, _ in job.wanters)
        has_device = seat.device_class == job.target.device_class
        return (job.failed_at[worker], not is_own, not has_device, seat.asked_s)

    def rival(self, job: Job) -> Job | None:
        """Return a job under way that may turn out to be of the same key."""
        for other in self.jobs.values():
            if other is job or not other.attempts or (job.key and other.key):
                continue
            if other.target.may_be(job.target) and self._artifact(other) == self._artifact(job):
                return other
        return None

    def _artifact(self, job: Job) -> str:
        return self._artifacts.get(job.target.ref, "/".join(job.target.ref))

    def _news(self) -> Iterator[Tell]:
        for job in self.jobs.values():
            if not job.is_built:
                continue
            for target in job.targets:
                for worker, seat in self.seats.items():
                    one = (worker, target.ref)
                    if seat.gone_s is not None or one in job.told or worker in job.refused:
                        continue
                    if seat.runs(target) or one in job.wanters:
                        job.told.add(one)
                        yield Tell(worker, target, job.key)
            job.wanters.clear()


def _name_of(wish: Target) -> str:
    """Return the name under which a wish waits for its key; no key looks like it."""
    return "?" + "/".join(wish)


def _put_off(job: Job, worker: str, now_s: float) -> None:
    """Take a build from a worker for which the same version has another key."""
    job.turn(job.attempts.pop(worker).target)
    job.held_s[worker] = now_s + OTHER_KEY_S
    job.error = f"{worker} has another runtime, or other wishes for this version"


def _unseat(job: Job, worker: str, now_s: float) -> None:
    """Forget what a worker said and was told over a connection that is over."""
    if any(one == worker for one, _ in job.wanters):
        job.unsure_s = now_s + UNSURE_S
    job.wanters = {one for one in job.wanters if one[0] != worker}
    job.told = {one for one in job.told if one[0] != worker}
    job.refused.pop(worker, None)
