"""The worker threads: a parallel loop over the programs of a grid, in machine code.

Workers are Python daemon threads that never come back from a native loop (without the GIL); they sleep on a
semaphore. One parallel loop runs at a time; a second caller, a nested one, or a child after fork runs inline.

Helpers stay off the caller's processor. Linux likes to wake a thread where its waker runs, and where processors share
no cache (most virtual machines) nothing moves it from there before the caller sleeps or a tick comes, milliseconds
later. So before a caller wakes helpers it takes its own processor out of their masks, if it is not out already: two
microseconds for each helper, and only after the caller has moved. The caller's own mask is never touched, and helpers
keep what else their masks had: those they started with, or other ones that somebody has given them since.
"""
from __future__ import annotations

import ctypes
import logging
import os
import threading
from functools import lru_cache

from tilelang import cache, locks
from tilelang.backends.cpu import machine
from tilelang.config import MAX_THREADS, config

_log = logging.getLogger("tilelang")

# State of the pool: the job, a ticket counter, helpers still busy, the first error, and scratch memory of each worker.
_IR = """
%sem = type [32 x i8]
@job_f = internal global ptr null
@job_ctx = internal global ptr null
@job_n = internal global i64 0
@job_chunk = internal global i64 1
@ticket = internal global i64 0
@active = internal global i32 0
@error = internal global i32 0
@busy = internal global i32 0
@helpers = internal global i32 0
@start = internal global %sem zeroinitializer, align 32
@done = internal global %sem zeroinitializer, align 32
@scratch = internal global [MAXW x ptr] zeroinitializer
@sizes = internal global [MAXW x i64] zeroinitializer
@job_bytes = internal global i64 0
@away = internal global i32 -1
declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_wait(ptr)
declare i32 @sem_trywait(ptr)
declare i32 @sem_post(ptr)
declare i32 @posix_memalign(ptr, i64, i64)
declare void @free(ptr)

define void @tl_pool_init(i32 %n) {
  call void @forget()
  call i32 @sem_init(ptr @start, i32 0, i32 0)
  call i32 @sem_init(ptr @done, i32 0, i32 0)
  store i32 %n, ptr @helpers
  store atomic i32 0, ptr @busy seq_cst, align 4
  ret void
}

define void @tl_pool_size(i32 %n) {
  store i32 %n, ptr @helpers
  store atomic i32 -1, ptr @away monotonic, align 4
  ret void
}

define i32 @tl_pool_workers() {
  %n = load i32, ptr @helpers
  %m = add i32 %n, 1
  ret i32 %m
}

; Scratch memory of worker %id, at least %bytes of it, or null. Only that worker calls this: any helper that was ever
; started may take part in a job, however many are wanted now.
define internal ptr @memory(i32 %id, i64 %bytes) {
  %slot = getelementptr [MAXW x ptr], ptr @scratch, i64 0, i32 %id
  %size = getelementptr [MAXW x i64], ptr @sizes, i64 0, i32 %id
  %have = load i64, ptr %size
  %enough = icmp sge i64 %have, %bytes
  br i1 %enough, label %ready, label %grow
grow:
  %old = load ptr, ptr %slot
  call void @free(ptr %old)
  store ptr null, ptr %slot
  store i64 0, ptr %size
  %e = call i32 @posix_memalign(ptr %slot, i64 4096, i64 %bytes)
  %bad = icmp ne i32 %e, 0
  br i1 %bad, label %fail, label %grown
grown:
  store i64 %bytes, ptr %size
  br label %ready
ready:
  %mem = load ptr, ptr %slot
  ret ptr %mem
fail:
  ret ptr null
}

; Hands out chunks until none is left or one failed.
define internal void @work(ptr %mem) {
entry:
  %f = load ptr, ptr @job_f
  %ctx = load ptr, ptr @job_ctx
  %n = load i64, ptr @job_n
  %c = load i64, ptr @job_chunk
  br label %next
next:
  %lo = atomicrmw add ptr @ticket, i64 %c seq_cst
  %more = icmp slt i64 %lo, %n
  %failed = load atomic i32, ptr @error monotonic, align 4
  %fine = icmp eq i32 %failed, 0
  %go = and i1 %more, %fine
  br i1 %go, label %run, label %out
run:
  %end = add i64 %lo, %c
  %over = icmp sgt i64 %end, %n
  %hi = select i1 %over, i64 %n, i64 %end
  %rc = call i32 %f(ptr %ctx, i64 %lo, i64 %hi, ptr %mem)
  %bad = icmp ne i32 %rc, 0
  br i1 %bad, label %fail, label %next
fail:
  %x = cmpxchg ptr @error, i32 0, i32 %rc seq_cst seq_cst
  br label %next
out:
  ret void
}

; Takes one from a semaphore: spins for about as long as Python takes from one operator to the next (0.15 ms), then
; sleeps. A caller that sleeps is woken on its helper's processor.
define internal void @await(ptr %sem) {
entry:
  br label %spin
spin:
  %i = phi i32 [ 0, %entry ], [ %i2, %pause ]
  %t = call i32 @sem_trywait(ptr %sem)
  %got = icmp eq i32 %t, 0
  br i1 %got, label %out, label %pause
pause:
  SPIN
  %i2 = add i32 %i, 1
  %more = icmp slt i32 %i2, 5000
  br i1 %more, label %spin, label %sleep
sleep:
  %w = call i32 @sem_wait(ptr %sem)
  %ok = icmp eq i32 %w, 0
  br i1 %ok, label %out, label %sleep
out:
  ret void
}

; The life of a helper: wait for a job, work, report.
define void @tl_pool_worker(i32 %id) {
entry:
  call void @enter(i32 %id)
  br label %again
again:
  call void @await(ptr @start)
  %bytes = load i64, ptr @job_bytes
  %mem = call ptr @memory(i32 %id, i64 %bytes)
  %nomem = icmp eq ptr %mem, null
  br i1 %nomem, label %fail, label %help
fail:
  %x = cmpxchg ptr @error, i32 0, i32 -2 seq_cst seq_cst
  br label %report
help:
  call void @work(ptr %mem)
  br label %report
report:
  %left = atomicrmw sub ptr @active, i32 1 seq_cst
  %last = icmp eq i32 %left, 1
  br i1 %last, label %tell, label %again
tell:
  call i32 @sem_post(ptr @done)
  br label %again
}

; body(ctx, begin, end, scratch) over [0, n) in this thread; gives its code, or -2 without memory.
define i32 @tl_serial(ptr %f, ptr %ctx, i64 %n, i64 %bytes) {
  %own = alloca ptr
  store ptr null, ptr %own
  %e = call i32 @posix_memalign(ptr %own, i64 4096, i64 %bytes)
  %nomem = icmp ne i32 %e, 0
  br i1 %nomem, label %fail, label %inline
inline:
  %m = load ptr, ptr %own
  %r = call i32 %f(ptr %ctx, i64 0, i64 %n, ptr %m)
  call void @free(ptr %m)
  ret i32 %r
fail:
  ret i32 -2
}

; The same over [0, n) by all workers; gives the first non-zero code, or -2 without memory.
define i32 @tl_parallel(ptr %f, ptr %ctx, i64 %n, i64 %bytes) {
entry:
  %none = icmp sle i64 %n, 0
  br i1 %none, label %zero, label %try
zero:
  ret i32 0
try:
  %took = cmpxchg ptr @busy, i32 0, i32 1 acquire monotonic
  %mine = extractvalue { i32, i1 } %took, 1
  br i1 %mine, label %pool, label %alone
alone:
  %r = call i32 @tl_serial(ptr %f, ptr %ctx, i64 %n, i64 %bytes)
  ret i32 %r
pool:
  %all = load i32, ptr @helpers
  %mem = call ptr @memory(i32 0, i64 %bytes)
  %nomem = icmp eq ptr %mem, null
  br i1 %nomem, label %give_up, label %ready
give_up:
  store atomic i32 0, ptr @busy release, align 4
  ret i32 -2
ready:
  %n32 = call i64 @llvm.smin.i64(i64 %n, i64 MAXW)
  %np = trunc i64 %n32 to i32
  %spare = sub i32 %np, 1
  %use = call i32 @llvm.smin.i32(i32 %all, i32 %spare)
  %solo = icmp sle i32 %use, 0
  br i1 %solo, label %single, label %many
single:
  %rs = call i32 %f(ptr %ctx, i64 0, i64 %n, ptr %mem)
  store atomic i32 0, ptr @busy release, align 4
  ret i32 %rs
many:
  store ptr %f, ptr @job_f
  store ptr %ctx, ptr @job_ctx
  store i64 %n, ptr @job_n
  store i64 %bytes, ptr @job_bytes
  %ways = add i32 %use, 1
  %parts32 = mul i32 %ways, 8
  %parts = sext i32 %parts32 to i64
  %c0 = sdiv i64 %n, %parts
  %c = call i64 @llvm.smax.i64(i64 %c0, i64 1)
  store i64 %c, ptr @job_chunk
  store atomic i32 0, ptr @error monotonic, align 4
  store atomic i32 %use, ptr @active monotonic, align 4
  store atomic i64 0, ptr @ticket seq_cst, align 8
  call void @keep_off()
  br label %wake
wake:
  %k = phi i32 [ 0, %many ], [ %k2, %wake ]
  call i32 @sem_post(ptr @start)
  %k2 = add i32 %k, 1
  %kmore = icmp slt i32 %k2, %use
  br i1 %kmore, label %wake, label %share
share:
  call void @work(ptr %mem)
  br label %recall
recall:  ; helpers that have not begun need not: there is nothing left to do
  %t = call i32 @sem_trywait(ptr @start)
  %idle = icmp eq i32 %t, 0
  br i1 %idle, label %without, label %join
without:
  %left = atomicrmw sub ptr @active, i32 1 seq_cst
  %last = icmp eq i32 %left, 1
  br i1 %last, label %end, label %recall
join:
  call void @await(ptr @done)
  br label %end
end:
  %code = load atomic i32, ptr @error monotonic, align 4
  store atomic i32 0, ptr @busy release, align 4
  ret i32 %code
}
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare i32 @llvm.smin.i32(i32, i32)
"""

# Of each helper: its thread, the processors it may use, and the mask set last. @away is the processor they keep off.
_AFFINITY = """
@thread = internal global [MAXW x ptr] zeroinitializer
@allowed = internal global [MAXW x i1024] zeroinitializer
@masked = internal global [MAXW x i1024] zeroinitializer
declare ptr @pthread_self()
declare i32 @pthread_getaffinity_np(ptr, i64, ptr)
declare i32 @pthread_setaffinity_np(ptr, i64, ptr)
declare i32 @sched_getcpu()
declare i1024 @llvm.ctpop.i1024(i1024)

define internal void @forget() {
  store [MAXW x ptr] zeroinitializer, ptr @thread
  store [MAXW x i1024] zeroinitializer, ptr @masked
  ret void
}

define internal void @enter(i32 %id) {
  %slot = getelementptr [MAXW x ptr], ptr @thread, i64 0, i32 %id
  %self = call ptr @pthread_self()
  store atomic ptr %self, ptr %slot release, align 8
  store atomic i32 -1, ptr @away monotonic, align 4
  ret void
}

; Called by whoever owns the pool.
define internal void @keep_off() {
entry:
  %mask = alloca i1024
  %cpu = call i32 @sched_getcpu()
  %before = load atomic i32, ptr @away monotonic, align 4
  %moved = icmp ne i32 %cpu, %before
  %known = icmp ult i32 %cpu, 1024
  %change = and i1 %moved, %known
  br i1 %change, label %begin, label %out
begin:
  store atomic i32 %cpu, ptr @away monotonic, align 4
  %wide = zext i32 %cpu to i1024
  %bit = shl i1024 1, %wide
  %others = xor i1024 %bit, -1
  %helpers32 = load i32, ptr @helpers
  %count = zext i32 %helpers32 to i1024
  br label %each
each:
  %id = phi i32 [ 1, %begin ], [ %id2, %next ]
  %slot = getelementptr [MAXW x ptr], ptr @thread, i64 0, i32 %id
  %thread = load atomic ptr, ptr %slot acquire, align 8
  %none = icmp eq ptr %thread, null
  br i1 %none, label %out, label %look
look:
  %e = call i32 @pthread_getaffinity_np(ptr %thread, i64 128, ptr %mask)
  %got = icmp eq i32 %e, 0
  br i1 %got, label %choose, label %next
choose:
  %now = load i1024, ptr %mask
  %last = getelementptr [MAXW x i1024], ptr @masked, i64 0, i32 %id
  %own = getelementptr [MAXW x i1024], ptr @allowed, i64 0, i32 %id
  %set = load i1024, ptr %last
  %kept = load i1024, ptr %own
  %ours = icmp eq i1024 %now, %set
  %all = select i1 %ours, i1024 %kept, i1024 %now
  store i1024 %all, ptr %own
  store i1024 %now, ptr %last
  %places = call i1024 @llvm.ctpop.i1024(i1024 %all)
  %enough = icmp ult i1024 %count, %places
  %fewer = and i1024 %all, %others
  %want = select i1 %enough, i1024 %fewer, i1024 %all
  %same = icmp eq i1024 %want, %now
  br i1 %same, label %next, label %put
put:
  store i1024 %want, ptr %mask
  %e2 = call i32 @pthread_setaffinity_np(ptr %thread, i64 128, ptr %mask)
  %done = icmp eq i32 %e2, 0
  br i1 %done, label %note, label %next
note:
  store i1024 %want, ptr %last
  br label %next
next:
  %id2 = add i32 %id, 1
  %more = icmp slt i32 %id2, MAXW
  br i1 %more, label %each, label %out
out:
  ret void
}
"""

# Where the system has no such masks.
_NO_AFFINITY = """
define internal void @forget() { ret void }
define internal void @enter(i32 %id) { ret void }
define internal void @keep_off() { ret void }
"""


# For callers that hold the interpreter's lock: others have it meanwhile. tvm-ffi does not release it instead, because
# CPython before 3.14 ends a thread that asks for the lock of an interpreter that has ended by unwinding its stack, and
# destructors of tvm-ffi on the way would end the process. A `nounwind` function has no data for that: the stack ends
# there.
_UNLOCKED = """
define i32 @tl_unlocked_HOW(ptr %f, ptr %ctx, i64 %n, i64 %bytes) nounwind {
  %thread = call ptr @PyEval_SaveThread()
  %code = call i32 @tl_HOW(ptr %f, ptr %ctx, i64 %n, i64 %bytes)
  call void @PyEval_RestoreThread(ptr %thread)
  ret i32 %code
}
"""


def object_code(target: machine.CpuTarget, python: bool = False) -> bytes:
    """Machine code of the pool, without its threads, from the cache or the compiler; for `python`, with what releases
    the interpreter's lock."""
    key = cache.key("pool", cache.compiler_key(), target.key, str(python))
    return cache.default().made(key, lambda: machine.object_code(_text(target, python), target))


def _text(target: machine.CpuTarget, python: bool) -> str:
    x86 = "x86" in target.triple
    spin = "call void @llvm.x86.sse2.pause()" if x86 else "fence seq_cst"
    text = _IR + (_AFFINITY if "linux" in target.triple else _NO_AFFINITY)
    if python:
        text += "declare ptr @PyEval_SaveThread()\ndeclare void @PyEval_RestoreThread(ptr)\n" + "".join(
            _UNLOCKED.replace("HOW", how) for how in ("parallel", "serial"))
    return text.replace("MAXW", str(MAX_THREADS)).replace("SPIN", spin) + (
        "declare void @llvm.x86.sse2.pause()\n" if x86 else "")


class Pool:
    """The process's worker threads."""

    def __init__(self) -> None:
        own = "tl_parallel", "tl_serial"  # of this name there may be those of a pool before it
        self._code = machine.Loaded(object_code(machine.host(), python=True), *own, "tl_unlocked_parallel",
                                    "tl_unlocked_serial", "tl_pool_workers", "tl_pool_init", "tl_pool_size",
                                    "tl_pool_worker")
        for name, here in (("tl_parallel", "tl_unlocked_parallel"), ("tl_serial", "tl_unlocked_serial"),
                           ("tl_workers", "tl_pool_workers")):
            machine.define(name, self._code.address(here))
        self._init = ctypes.CFUNCTYPE(None, ctypes.c_int32)(self._code.address("tl_pool_init"))
        self._size = ctypes.CFUNCTYPE(None, ctypes.c_int32)(self._code.address("tl_pool_size"))
        self._worker = ctypes.CFUNCTYPE(None, ctypes.c_int32)(self._code.address("tl_pool_worker"))
        self._started = 0
        self.workers = 1
        self._init(0)
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        """Threads do not survive a fork: the child begins with none and starts its own."""
        wanted, self._started = self.workers, 0
        self._init(0)
        self.resize(wanted)

    def resize(self, workers: int) -> None:
        """Lets `workers` threads (the caller's included) take part in parallel loops, or all that there are."""
        if not 1 <= workers <= MAX_THREADS:
            raise ValueError(f"the number of threads must be 1 to {MAX_THREADS}, got {workers}")
        with locks.compiling:  # two that start the same helper would give it the same memory
            while self._started < workers - 1:
                try:
                    threading.Thread(target=self._worker, args=(self._started + 1,), daemon=True,
                                     name=f"tilelang-{self._started + 1}").start()
                except RuntimeError as error:  # a limit of the system's, or of a container
                    _log.warning("kernels run on %d threads instead of %d: %s", self._started + 1, workers, error)
                    workers = self._started + 1
                    break
                self._started += 1
            self.workers = workers
            self._size(workers - 1)


def pool() -> Pool:
    """The pool, started at first use with one thread for each processor this process may run on."""
    with locks.compiling:
        return _pool()


@lru_cache(maxsize=1)
def _pool() -> Pool:
    out = Pool()
    out.resize(config().threads or min(len(os.sched_getaffinity(0)), MAX_THREADS))
    return out
