"""Kernels on all threads: `prange`, which shares the iterations of a kernel's loop among Numba's threads.

A kernel with a parallel loop has one more argument, `thread`: which thread it runs on, of how many. Called with START,
it calls itself once on every thread; called with ALONE, it computes everything itself. Numba's own `prange` makes two
more functions of every loop and compiles the kernel once more for a single thread: three times the work for the
compiler, and longer calls.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from tensorgrad.backend.numba.compile import jit, require_threads

MIN_PARALLEL_ELEMENTS = 2**15  # with fewer, waking the other threads costs more than they save

ALONE, START = (0, 1), (-1, 1)
THREAD = types.UniTuple(types.int64, 2)  # the type of `thread`


class Threads:
    """When parallel kernels may run: one at a time, and not in every forked process.

    Numba's workqueue layer, the one that needs no other library, ends a process in which two threads start kernels at
    the same time; and kernels use all cores anyway. GNU's OpenMP ends a forked process that starts a parallel kernel
    after its parent did: there each kernel runs on one thread, and computes the same bits.
    """

    def __init__(self) -> None:
        self.may_start = True
        self.lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.lock = threading.RLock()  # another thread of the parent may have held it
        with contextlib.suppress(ValueError):  # no parallel kernel has run yet
            self.may_start = self.may_start and numba.threading_layer() != "omp"


threads = Threads()


class Kernel:
    """A loop over arrays, on all threads if the first array is large.

    It is called with the arguments of the function but the last, `thread`.

    It is compiled without any of LLVM's fast-math flags. They would let LLVM round differently in the vectorised part
    of a loop and in its last elements. Without them, any number of threads gives the same bits.
    """

    def __init__(self, fn: Callable[..., None]) -> None:
        functools.update_wrapper(self, fn)
        self.py_func = fn
        self.compiled = jit(fn, fn.__name__)

    def __call__(self, first: Any, *rest: Any) -> None:
        if first.size >= MIN_PARALLEL_ELEMENTS and threads.may_start:
            with threads.lock:
                self.compiled(first, *rest, START)
        else:
            self.compiled(first, *rest, ALONE)


def kernel(fn: Callable[..., None]) -> Kernel:
    """Decorator: compile a function that loops over arrays as a `Kernel`."""
    return Kernel(fn)


def prange(n: int, thread: tuple[int, int]) -> range:
    """The part of range(n) that belongs to this thread. With START, run the kernel on every thread; nothing is left."""
    number, count = (0, 1) if thread == START else thread
    return range(n * number // count, n * (number + 1) // count)


@type_callable(prange)  # type: ignore[untyped-decorator]
def _type(context: Any) -> Any:
    return lambda n, thread: types.range_state64_type


@lower_builtin(prange, types.Integer, THREAD)  # type: ignore[untyped-decorator]
def _lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """See `prange`."""
    for x in builder.function.args:
        if isinstance(x.type, ir.PointerType):  # arrays that a kernel gets are distinct, or the same element by element
            x.add_attribute("noalias")
    n = context.cast(builder, arguments[0], signature.args[0], types.int64)
    number, count = cgutils.unpack_tuple(builder, arguments[1])
    zero, one = ir.Constant(n.type, 0), ir.Constant(n.type, 1)
    starts = builder.icmp_signed("<", number, zero)
    with builder.if_then(starts):
        _run_on_every_thread(context, builder)
    end = builder.select(starts, number, builder.add(number, one))  # with START nothing is left
    part = cgutils.create_struct_proxy(types.range_state64_type)(context, builder)
    part.start, part.stop = (builder.sdiv(builder.mul(n, x), count) for x in (number, end))
    part.step = one
    return part._getvalue()


def _run_on_every_thread(context: Any, builder: Any) -> None:
    """Call the function that is being compiled with its own arguments, but for `thread`, on every thread.

    Numba's threading layer has one function for that: numba_parallel_for calls `part(args, dims, steps, data)` for the
    numbers 0 to dims[0]; the first number of a call is args[0] - data, and dims[0] then says how many to do. `data` is
    a frame in memory: the status and the error of a thread that failed, the number of threads, then the arguments.
    """
    require_threads()
    function, module = builder.function, builder.module
    i64, pointer = ir.IntType(64), cgutils.voidptr_t
    result, error, *given = function.args  # numba's calling convention; the last two are `thread`
    given = _without_owners(context, builder, given)[:-2]
    status = function.function_type.return_type
    frame_type = ir.LiteralStructType([status, error.type.pointee, i64, *(x.type for x in given)])
    count = builder.call(cgutils.get_or_insert_function(module, ir.FunctionType(i64, []), "get_num_threads"), [])
    frame = cgutils.alloca_once(builder, frame_type)
    for i, value in enumerate([ir.Constant(status, 0), ir.Constant(error.type.pointee, None), count, *given]):
        builder.store(value, cgutils.gep_inbounds(builder, frame, 0, i))

    part = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer.as_pointer(), *[i64.as_pointer()] * 2, pointer]),
                       name=f"{function.name}.part")  # fmt: skip
    part.linkage = "internal"
    _fill_part(part, function, frame_type)

    data = builder.bitcast(frame, pointer)
    args, dims, steps = (cgutils.alloca_once_value(builder, x) for x in (data, count, ir.Constant(i64, 1)))
    kind = ir.FunctionType(ir.VoidType(), [pointer] * 5 + [i64] * 3)
    parallel_for = cgutils.get_or_insert_function(module, kind, "numba_parallel_for")
    pointers = [builder.bitcast(x, pointer) for x in (part, args, dims, steps)]
    builder.call(parallel_for, [*pointers, data, ir.Constant(i64, 0), ir.Constant(i64, 1), count])

    failed = builder.load(cgutils.gep_inbounds(builder, frame, 0, 0))
    with builder.if_then(builder.icmp_signed("!=", failed, ir.Constant(status, 0)), likely=False):
        builder.store(builder.load(cgutils.gep_inbounds(builder, frame, 0, 1)), error)
        builder.ret(failed)


def _without_owners(context: Any, builder: Any, given: Any) -> Any:
    """Arguments in which no array names its owner: threads need not count references, which all of them would write."""
    kinds = context.fndesc.argtypes
    packer = context.get_arg_packer(kinds)
    values = packer.from_arguments(builder, given)
    for i, kind in enumerate(kinds):
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, values[i])
            array.meminfo = array.parent = ir.Constant(array.meminfo.type, None)
            values[i] = array._getvalue()
    return packer.as_arguments(builder, values)


def _fill_part(part: Any, function: Any, frame_type: Any) -> None:
    """The body of what a thread runs: it calls `function` with the arguments in the frame, for each of its numbers."""
    builder = ir.IRBuilder(part.append_basic_block())
    args, dims, _, data = part.args
    i64 = ir.IntType(64)
    frame = builder.bitcast(data, frame_type.as_pointer())
    places = [cgutils.gep_inbounds(builder, frame, 0, i) for i in range(len(frame_type.elements))]
    count, *given = (builder.load(place) for place in places[2:])
    result, error = (cgutils.alloca_once(builder, x.type.pointee) for x in function.args[:2])
    first = builder.sub(builder.ptrtoint(builder.load(args), i64), builder.ptrtoint(data, i64))
    with cgutils.for_range(builder, builder.load(dims)) as loop:
        number = builder.add(first, loop.index)
        status = builder.call(function, [result, error, *given, number, count], attrs=("noinline",))
        with builder.if_then(builder.icmp_signed("!=", status, ir.Constant(status.type, 0)), likely=False):
            builder.store(status, places[0])
            builder.store(builder.load(error), places[1])
    builder.ret_void()
