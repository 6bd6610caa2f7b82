"""The processes that train, kept warm from one training to the next, and who sits in which of them.

A `Rank` is a Ray actor on one card (`orchestrator.placement`): it imports torch once, then runs one rank of one
training after another. The `Keeper`, one actor a study, seats trainings and keeps idle ranks. `train` is what a trial,
the confirmation and the final stage iterate over: it asks for ranks, drives them epoch by epoch, and starts them anew
from the last checkpoint when something happened that is not the training's own fault.
"""

import asyncio
import contextlib
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util import get_node_ip_address
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.disk import SECONDS_BETWEEN_LOOKS, is_full, wait_for_space
from orchestrator.placement import Seating, backend_of
from orchestrator.resources import Resources
from orchestrator.stores import first_line
from proseg.config import TrainConfig
from proseg.data.folds import Fold
from proseg.errors import ProSegError
from proseg.records import LAST, Criterion

RESTARTS = 3
"""Times that a training goes on from its last checkpoint after it lost a process, or hung, before it has failed."""
SECONDS_TO_GET_READY = 60.0
CHECKPOINTS_WRITTEN = 4
"""Sizes of a checkpoint that must be free before an epoch: last, best, and each while it is being replaced."""

Kind = Literal["error", "memory", "disk", "lost", "hung"]


class TrainingFailed(ProSegError):
    """A training cannot be brought to its end; the message is the reason, the cause has the traceback."""

    exit_code = 1


@dataclass(frozen=True)
class Job:
    """One training and its folder."""

    config: TrainConfig
    data: Path
    fold: Fold | int
    """Or its number among the folds of the data."""
    folder: Path
    criterion: Criterion


class Trouble(Exception):
    """Why the ranks stopped before the end."""

    def __init__(self, kind: Kind, reason: str, traceback: str = "", sound: bool = False):
        super().__init__(kind, reason, traceback, sound)  # so that it can be sent to another process
        self.kind, self.reason, self.traceback = kind, reason, traceback
        self.sound = sound
        """The process itself is as good as before."""


@dataclass(frozen=True)
class Terms:
    """How trainings are run, the same for all of a study."""

    workers: int
    share: float
    epoch_timeout: float
    """Seconds without an epoch after which a training hangs."""
    can_double: bool
    """Is a share of a GPU what memory depends on?"""

    @classmethod
    def of(cls, resources: Resources, epoch_timeout: float) -> "Terms":
        return cls(resources.workers, resources.share, epoch_timeout, bool(resources.gpus))


# --- in the processes that train --------------------------------------------------------------------------------------


class Rank:
    """One rank of one training after another."""

    def __init__(self, threads: int, share: float):
        import torch

        torch.set_num_threads(threads)
        if torch.cuda.is_available():
            # Ray accounts for shares and enforces nothing: a neighbour must not be pushed out.
            torch.cuda.set_per_process_memory_fraction(share)
        self._epochs: Iterator[dict[str, Any]] = iter(())
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._token = ""

    def where(self) -> tuple[str, str, list[int]]:
        """The address of its node, the name of its device, the numbers of its GPUs as Ray counts them."""
        from proseg.distributed import device_name

        return get_node_ip_address(), device_name(), [int(number) for number in ray.get_gpu_ids()]

    def meeting(self, *, one_machine: bool) -> str:
        """Where the ranks of a training find each other, as torch names it: at this one."""
        if one_machine:
            # Kept until the next one: the ranks may meet there until they part.
            self._folder = tempfile.TemporaryDirectory(prefix="proseg-ranks-")
            return f"file://{self._folder.name}/group"
        import socket

        with socket.socket() as probe:
            probe.bind((get_node_ip_address(), 0))
            host, port = probe.getsockname()[:2]
        return f"tcp://{host}:{port}"

    def begin(
        self, job: Job, number: int, ranks: int, meeting: str, backend: str, token: str
    ) -> Trouble | None:  # fmt: skip
        """Become rank `number` of a training; `token` is what ends it."""
        import torch

        from proseg.data.store import Store
        from proseg.distributed import join_group
        from proseg.fit import fit

        try:
            self._let_go()  # who drove the training before may have died
            self._token = token
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            if ranks > 1:
                join_group(number, ranks, meeting=meeting, backend=backend)
            fold = Store(job.data).manifest.folds[job.fold] if isinstance(job.fold, int) else job.fold
            self._epochs = fit(job.config, job.data, fold, job.folder, job.criterion)
        except Exception as error:  # told to who drives us, which records it
            return trouble(error)
        return None

    def advance(self) -> dict[str, Any] | Trouble | None:
        """Train one epoch: its record, None after the last, or what went wrong."""
        try:
            return next(self._epochs, None)
        except Exception as error:  # told to who drives us, which records it
            return trouble(error)

    def call(self, function: Any, *arguments: Any) -> Any:
        """Run a function here, where the device and torch are."""
        try:
            return function(*arguments)
        except Exception as error:  # told to who drives us, which records it
            return trouble(error)

    def end(self, token: str) -> None:
        """Let go of the training, unless another has begun since."""
        if token == self._token:
            self._let_go()

    def _let_go(self) -> None:
        import gc

        import torch

        from proseg.distributed import leave_group

        self._epochs = iter(())  # a generator is closed when nobody holds it
        leave_group()
        torch.use_deterministic_algorithms(False)  # a training that asks for it sets it for the whole process
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def trouble(error: Exception) -> Trouble:
    """An error as it can be sent to another process, by what can be done about it."""
    import torch

    kind: Kind = "error"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        kind = "memory"
    elif is_full(error):
        kind = "disk"
    reason = str(error) if isinstance(error, ProSegError) else f"{type(error).__name__}: {error}"
    return Trouble(kind, " ".join(reason.split()), traceback.format_exc(), isinstance(error, ProSegError))


# --- who sits where ---------------------------------------------------------------------------------------------------


@dataclass
class Crew:
    """The ranks of one training."""

    handles: list[Any]
    places: list[tuple[str, str, list[int]]]
    """Of each: address, device, GPU numbers."""
    token: str
    """Of this use of them."""

    @property
    def backend(self) -> str:
        return backend_of([device for _, device, _ in self.places])

    @property
    def one_machine(self) -> bool:
        return len({address for address, _, _ in self.places}) == 1


@dataclass
class _Held:
    crew: Crew
    seats: list[int]
    share: float


class Keeper:
    """Seats trainings on cards and keeps idle ranks; an asyncio actor, one a study.

    Each card is a placement group of its own, so that a node that dies takes only its own cards away.
    """

    def __init__(self, resources: Resources, rank: type = Rank):
        """`rank` is what sits on a seat; the placement is the same for any."""
        self._rank = rank
        self._cards = resources.cards()
        self._threads = resources.threads_per_rank
        self._seating = Seating(self._cards)
        self._groups = [placement_group([bundle], strategy="STRICT_PACK") for bundle in resources.bundles()]
        self._idle: dict[tuple[int, float], list[Any]] = defaultdict(list)
        self._held: dict[str, _Held] = {}
        self._queue: list[object] = []
        self._asked: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def ready(self) -> int:
        """Wait for the cards; those that others hold are left out. The number of cards there are."""
        waiting = [asyncio.ensure_future(_resolved(group.ready())) for group in self._groups]
        done, _ = await asyncio.wait(waiting, timeout=SECONDS_TO_GET_READY)
        for card, future in enumerate(waiting):
            if future not in done:
                future.cancel()
                self._lose(card)
        self._learn_where_cards_are()
        return len(self._seating.cards)

    async def hire(self, trainings: int, ranks: int, share: float) -> None:
        """Start the processes of the first trainings before they are asked for: torch is imported while Tune starts."""
        seated = [self._seating.take(ranks, share) for _ in range(trainings)]
        for seats in seated:
            for card in seats or ():
                self._idle[card, share].append(self._hire(card, share))
            self._seating.give(seats or (), share)

    def _learn_where_cards_are(self) -> None:
        """Ray put them where it found room; the plan only knew how many there are."""
        nodes = {card: self._node(card) for card in self._seating.cards}
        numbers = {node: number for number, node in enumerate(dict.fromkeys(nodes.values()))}
        for card, node in nodes.items():
            self._cards[card] = replace(self._cards[card], node=numbers[node])
        lost = set(range(len(self._cards))) - set(nodes)
        self._seating = Seating(self._cards)
        for card in lost:
            self._seating.lose(card)

    def _node(self, card: int) -> str:
        (node,) = placement_group_table(self._groups[card])["bundles_to_node_id"].values()
        return node

    async def take(self, owner: str, ranks: int, share: float) -> Crew:
        """Ranks for a training; waits, first come first served, until there is room. What the owner held is given up:
        it was lost on the way, and two processes must not write to the same folder."""
        self._asked[owner] += 1
        turn = self._asked[owner]
        await self.give(owner, warm=False)
        ticket, failures = object(), 0
        self._queue.append(ticket)
        try:
            while True:
                async with self._changed:
                    self._drop_lost_nodes()
                    seats = self._seating.take(ranks, share) if self._queue[0] is ticket else None
                    if seats is None:
                        if not self._seating.cards:
                            raise RuntimeError("no node of the cluster is left")
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._changed.wait(), 5.0)
                        continue
                crew = await self._seated(seats, share, token=f"{owner} {turn}")
                if crew is None:
                    failures += 1
                    if failures > RESTARTS:
                        raise RuntimeError("training processes end as soon as they start; --verbose shows their log")
                    continue
                self._held[owner] = _Held(crew, seats, share)
                if turn != self._asked[owner]:  # who asked died while it waited, and has asked again
                    await self.give(owner, warm=True)
                return crew
        finally:
            self._queue.remove(ticket)
            async with self._changed:
                self._changed.notify_all()

    async def give(self, owner: str, *, warm: bool) -> None:
        """The seats of a training are free again; its processes are kept if they are fit for another."""
        held = self._held.pop(owner, None)
        if held is None:
            return
        for handle, card in zip(held.crew.handles, held.seats, strict=True):
            if warm:
                self._idle[card, held.share].append(handle)
            else:
                ray.kill(handle)
        await self._free(held.seats, held.share)

    async def close(self) -> None:
        """End all ranks and let go of the cards: in a cluster they belong to others when a study has ended."""
        for owner in list(self._held):
            await self.give(owner, warm=False)
        for handle in [handle for handles in self._idle.values() for handle in handles]:
            ray.kill(handle)
        for card in self._seating.cards:
            remove_placement_group(self._groups[card])

    async def _free(self, seats: Sequence[int], share: float) -> None:
        self._seating.give(seats, share)
        async with self._changed:
            self._changed.notify_all()

    async def _seated(self, seats: list[int], share: float, token: str) -> Crew | None:
        """A process on each seat; None, and the seats are free again, where a node died under them."""
        handles = []
        try:
            for card in seats:
                self._make_room(card, share)
                idle = self._idle[card, share]
                handles.append(idle.pop() if idle else self._hire(card, share))
            places = await asyncio.gather(*(_resolved(handle.where.remote()) for handle in handles))
            return Crew(handles, list(places), token)
        except RayActorError:
            for handle in handles:
                ray.kill(handle)
            await self._free(seats, share)
            await asyncio.sleep(1.0)  # Ray learns of a dead node a moment after its processes are gone
            return None

    def _make_room(self, card: int, share: float) -> None:
        """Idle processes of another share hold memory, and GPU that Ray counts: they go."""
        for key in [key for key in self._idle if key[0] == card and key[1] != share]:
            for handle in self._idle.pop(key):
                ray.kill(handle)

    def _hire(self, card: int, share: float) -> Any:
        seat = PlacementGroupSchedulingStrategy(self._groups[card], 0)
        gpus = share if self._cards[card].gpu else 0
        return ray.remote(self._rank).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=seat).remote(
            self._threads, share)  # type: ignore[attr-defined]  # fmt: skip

    def _drop_lost_nodes(self) -> None:
        if len({card.node for card in self._cards}) == 1:
            return  # without its only node this actor would not be here
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for card in self._seating.cards:
            if self._node(card) not in alive:
                self._lose(card)

    def _lose(self, card: int) -> None:
        self._seating.lose(card)
        remove_placement_group(self._groups[card])
        for key in [key for key in self._idle if key[0] == card]:
            del self._idle[key]


async def _resolved(reference: Any) -> Any:
    return await reference


# --- who drives them --------------------------------------------------------------------------------------------------


@dataclass
class Course:
    """What became of a training on its way; filled while it is iterated over."""

    share: float = 0.0
    retries: list[str] = field(default_factory=list)
    backend: str = ""


def train(job: Job, keeper: Any, owner: str, terms: Terms, course: Course) -> Generator[dict[str, Any], None, None]:
    """Train a job, yielding the record of each epoch (`proseg.fit.fit`). Closing the iterator frees the ranks.

    Lost processes, hanging ones and a full disk cost the epoch that was under way; a training that ran out of GPU
    memory is tried once more with twice the share.

    Raises:
        TrainingFailed: the training's own error, or one too many of the others.
    """
    course.share = terms.share
    while True:
        try:
            yield from _attempt(job, keeper, owner, terms, course)
            return
        except Trouble as found:
            _go_on_or_fail(found, terms, course)


def call(
    function: Any, *arguments: Any, folder: Path, keeper: Any, owner: str, terms: Terms, course: Course
) -> Any:  # fmt: skip
    """What a function, which writes to `folder`, returns in a rank, where torch and the device are; lost processes and
    the rest as in `train`.

    Raises:
        TrainingFailed: the function's own error, or one too many of the others.
    """
    while True:
        _wait_for_disk(folder)
        try:
            with crew_of(keeper, owner, 1, course.share) as crew:
                return _all(crew, [crew.handles[0].call.remote(function, *arguments)], None)
        except Trouble as found:
            _go_on_or_fail(found, terms, course)


def _go_on_or_fail(found: Trouble, terms: Terms, course: Course) -> None:
    if found.kind == "disk":
        time.sleep(SECONDS_BETWEEN_LOOKS)  # a quota may leave free bytes, for which the next attempt does not wait
        return
    doubled = min(1.0, 2 * course.share)
    again = {
        "error": False,
        "memory": course.share == terms.share and (doubled > course.share or not terms.can_double)
        and not any("out of memory" in retry for retry in course.retries),
        "lost": len(course.retries) < RESTARTS,
        "hung": not any("no epoch" in retry for retry in course.retries),
    }[found.kind]  # fmt: skip
    if not again:
        raise TrainingFailed(found.reason) from RuntimeError(found.traceback)
    if found.kind != "memory":
        course.retries.append(found.reason)
    elif terms.can_double:
        course.share = doubled
        course.retries.append(f"out of memory: tried again with a share of {doubled:g}")
    else:
        course.retries.append(f"out of memory: tried again ({found.reason})")


def _attempt(job: Job, keeper: Any, owner: str, terms: Terms, course: Course) -> Iterator[dict[str, Any]]:
    with crew_of(keeper, owner, terms.workers, course.share) as crew:
        meeting = ""
        if terms.workers > 1:
            first = crew.handles[0]
            meeting = _all(crew, [first.meeting.remote(one_machine=crew.one_machine)], terms.epoch_timeout)
        course.backend = crew.backend
        _all(crew, [handle.begin.remote(job, number, terms.workers, meeting, crew.backend, crew.token)
                    for number, handle in enumerate(crew.handles)], terms.epoch_timeout)  # fmt: skip
        while True:
            _wait_for_disk(job.folder)
            record = _all(crew, [handle.advance.remote() for handle in crew.handles], terms.epoch_timeout)
            if record is None:
                return
            yield record
            if record["finished"]:
                return


@contextlib.contextmanager
def crew_of(keeper: Any, owner: str, ranks: int, share: float) -> Iterator[Crew]:
    """Ranks, given back warm, or not at all after trouble: a process that failed may be in any state."""
    try:
        crew: Crew = ray.get(keeper.take.remote(owner, ranks, share))
    except RayTaskError as error:
        raise TrainingFailed(str(error.cause)) from None
    warm = False
    try:
        try:
            yield crew
            warm = True
        except GeneratorExit:  # early stopping: the ranks are between epochs
            warm = True
            raise
        except Trouble as found:  # the peers of a rank that failed still wait for it
            warm = found.sound and ranks == 1
            raise
    finally:
        if warm:
            # Not waited for: a rank may be in another training already, and Tune gives up on who is slow to end.
            for handle in crew.handles:
                handle.end.remote(crew.token)
        ray.get(keeper.give.remote(owner, warm=warm))


def _all(crew: Crew, references: list[Any], timeout: float | None) -> Any:
    """What rank 0 says when all have spoken; the first trouble of any is raised, while its peers still wait for it."""
    answers: dict[Any, Any] = {}
    waiting, deadline = list(references), None if timeout is None else time.monotonic() + timeout
    while waiting:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, waiting = ray.wait(waiting, timeout=left)
        if not done:
            raise Trouble("hung", f"no epoch was finished in {timeout:.0f} s (--epoch-timeout)")
        for reference in done:
            answers[reference] = _answer(reference)
    return answers[references[0]]


def _answer(reference: Any) -> Any:
    try:
        answer = ray.get(reference)
    except RayActorError as error:
        raise Trouble("lost", f"a training process was lost ({first_line(error)})") from None
    except GetTimeoutError as error:
        raise Trouble("lost", str(error)) from None
    if isinstance(answer, Trouble):
        raise answer
    return answer


def _wait_for_disk(folder: Path) -> None:
    last = folder / LAST
    size = last.stat().st_size if last.exists() else 0
    folder.mkdir(parents=True, exist_ok=True)
    wait_for_space(folder, CHECKPOINTS_WRITTEN * size)
