"""Programs of a cluster: neighbours in the grid that run at the same time and reach each other's shared memory
(NVIDIA's thread block clusters). `Grid` says which they are."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelang.errors import CheckError, TargetError, VerifyError
from tilelang.ir.core import BufferType, Function, Op, Region, TileType, Type
from tilelang.ir.elementwise import ALL_LEVELS
from tilelang.ir.memory import memory_type
from tilelang.ir.shape import I32
from tilelang.ir.simt import SCHEDULED

if TYPE_CHECKING:
    from tilelang.ir.interpreter import Frame

BARRIERS = ("barrier", "cluster_barrier")
"""Operations behind which the program sees what its threads wrote to shared memory before."""


class Cluster:
    """Programs that the interpreter runs by turns, each in a thread: one goes on until it waits for others."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames, self.turn = frames, Condition()  # whoever runs holds its lock
        self.arrived = self.phase = self.ended = 0
        self.waiting: list[Callable[[], bool]] = []  # for what, each that waits

    def meet(self, op: Op) -> None:
        """Raises CheckError where programs wait at other places, or have ended."""
        phase = self.phase
        self.arrived += 1
        if self.arrived == len(self.frames):
            self.arrived, self.phase = 0, phase + 1
        self.wait(lambda: self.phase != phase, op)

    def wait(self, until: Callable[[], bool], op: Op) -> None:
        """Lets others run. Raises CheckError where none of them can."""
        self.waiting.append(until)
        while not until():
            if len(self.waiting) + self.ended == len(self.frames) and not any(done() for done in self.waiting):
                self.waiting.remove(until)
                raise CheckError([f"`{op.name}` waits for what no program of the cluster ever does"
                                  + (f" ({op.loc.file}:{op.loc.line})" if op.loc else "")])
            self.turn.notify_all()
            self.turn.wait()
        self.waiting.remove(until)

    def run(self, body: Region) -> None:
        """Raises what the first program to fail raises."""
        errors = list[BaseException]()

        def execute(frame: Frame) -> None:
            with self.turn, np.errstate(all="ignore"):
                try:
                    frame.run_region(body, [])
                except BaseException as error:  # it is raised where they were started
                    errors.append(error)
                self.ended += 1
                self.turn.notify_all()
        threads = [Thread(target=execute, args=[frame]) for frame in self.frames]
        for frame, thread in zip(self.frames, threads, strict=True):
            frame.cluster, frame.written = self, self.frames[0].written  # they write to each other's memory
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def uses(fn: Function) -> list[Op]:
    """The operations by which programs of a cluster know of each other."""
    return [op for op in fn.walk() if op.name in ("cluster_rank", "cluster_barrier", "peer")
            and not op.attrs.get("sharing")]


def cluster_of(fn: Function, sharing: bool = False) -> tuple[int, ...]:
    """The extents of the clusters whose programs know of each other, or, where `sharing`, copy blocks for each other;
    () where none do, and they need not run together."""
    together = uses(fn) or sharing and any(op.name == "sharers" for op in fn.walk())
    return next((op.attrs["cluster"] for op in fn.body.ops if op.name == "grid"), ()) if together else ()


def refuse_clusters(fn: Function, target: str) -> None:
    """Raises TargetError where programs know of each other, for a target that runs each by itself."""
    for op in uses(fn):
        raise TargetError(f"{target} does not support clusters of programs", loc=op.loc, got=f"`{op.name}`",
                          needs="an NVIDIA GPU from sm_90 on", try_="exchange data through tensors, in two kernels")


class ClusterRank(Op):
    """Number of this program in its cluster, the last extent counting fastest."""
    name, levels, effects = "cluster_rank", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        return [TileType((), I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return frame.cluster_rank()


class Sharers(Op):
    """The programs of a `cluster` (its extents) that differ from this one in their places `along` these dimensions of
    the grid alone: (which of them this one is, a bit for the number of each)."""
    name, levels, attributes = "sharers", SCHEDULED, {"cluster": ..., "along": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType((), I32)] * 2

    def eval(self, frame: Any, *args: Any) -> Any:
        extents = self.attrs["cluster"]
        place = [i % n for i, n in zip(frame.ids or (0,) * len(extents), extents, strict=True)]
        return tuple(np.asarray(x, np.int32) for x in self.of(int(np.ravel_multi_index(place, extents))))

    def of(self, rank: int) -> tuple[int, int]:
        """Of the program of that number."""
        extents, along = self.attrs["cluster"], self.attrs["along"]
        place = np.unravel_index(rank, extents)
        others = [tuple(o if d in along else p for d, (o, p) in enumerate(zip(other, place, strict=True)))
                  for other in np.ndindex(*extents)]
        ranks = sorted({int(np.ravel_multi_index(o, extents)) for o in others})
        return ranks.index(rank), sum(1 << r for r in ranks)


class ClusterBarrier(Op):
    """Every thread of every program of the cluster reaches this point before any goes on; shared memory written before
    is visible to all of them. Where `sharing`, it is there for copies of blocks to several programs, which the
    interpreter makes for each by itself."""
    name, levels, effects, attributes = "cluster_barrier", ALL_LEVELS, "control", {"sharing": False}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        if frame.cluster is not None and not self.attrs["sharing"]:
            frame.cluster.meet(self)
        return ()


class Peer(Op):
    """The same buffer of the program of that number in the cluster: (buffer, rank)."""
    name, levels, effects = "peer", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        t = memory_type(self, self.operands[0])
        if not isinstance(t, BufferType) or t.space != "shared" or self.operands[1].type != TileType((), I32):
            raise VerifyError("`peer` needs memory that other programs have, too", op=self.name, loc=self.loc,
                              needs="memory made by tile.shared, and an i32 scalar",
                              got=f"{t}, {self.operands[1].type}", try_="s = tile.shared(...); tile.peer(s, rank)")
        return [BufferType(t.dtype, t.shape, "cluster", t.layout)]

    def eval(self, frame: Any, *args: Any) -> Any:
        """It waits until that program has made its buffer."""
        rank, buffer, cluster = int(args[1]), self.operands[0], frame.cluster
        frames = cluster.frames if cluster is not None else [frame]
        if not 0 <= rank < len(frames):
            raise CheckError([f"`peer` {rank} of a cluster of {len(frames)} programs"
                              + (f" ({self.loc.file}:{self.loc.line})" if self.loc else "")])
        if cluster is not None:
            cluster.wait(lambda: buffer in frames[rank].values, self)
        return frames[rank].values[buffer]
