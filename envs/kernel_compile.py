"""How the kernel is compiled, and the blocks of memory that it works on.

Inner functions get no Python wrappers, and neither optimisation nor machine code of their own: all of them become part of the entry points
and are optimised there, once. Numba would optimise each of some 300 with everything that it calls, which doubles the time to compile.
Reference counting is off (``_nrt``): nothing in the kernel allocates, the caller keeps every array alive, and counting at each access took
four fifths of the run time. Arrays enter the kernel as bare pointers: an array argument is seven values long, and its indices are tested
for negative ones at every access.

With ``NUMBA_DISABLE_JIT=1`` the same code runs as plain Python over rows that refuse every index outside them, negative ones too: a
compiled kernel reads whatever lies there, and is right or dead by chance.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False}


class _InnerLibrary(JITCodeLibrary):
    """Code of a function that only other compiled functions call. Its methods are those of numba (pinned) that would finish it."""

    @property
    def codegen(self):
        return _NoEnvironment

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0


class _NoEnvironment:
    @staticmethod
    def set_env(env_name, env):
        """Nothing in the kernel looks into its environment."""


class _InnerCompiler(Compiler):
    def _compile_bytecode(self):
        if self.state.library is None:
            self.state.library = _InnerLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
            self.state.library.enable_object_caching()
        return super()._compile_bytecode()


compiled = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_InnerCompiler, **OPTIONS)


class Blocks(NamedTuple):
    """The memory of one environment. Places are named in ``envs.fields``."""

    o: object  # int64, where each part of the other blocks begins, and sizes
    k: object  # int64, the cluster
    kf: object  # float64, the cluster
    j: object  # int64, the window's jobs
    jf: object  # float64, the window's jobs
    g: object  # int64, the window's grid and outages
    gf: object  # float64, the window's grid
    q: object  # int64, settings of the policy
    qf: object  # float64, settings and objective
    i: object  # int64, the state
    f: object  # float64, the state
    log: object  # int64, the event log


if config.DISABLE_JIT:

    class CheckedRow:
        """A part of an array, by whole numbers from 0 to below its length."""

        __slots__ = ("row",)

        def __init__(self, row):
            self.row = row

        def __len__(self):
            return len(self.row)

        def __getitem__(self, at):
            return self.row[self._inside(at)]

        def __setitem__(self, at, value):
            self.row[self._inside(at)] = value

        def _inside(self, at):
            if not 0 <= at < len(self.row):
                raise IndexError(f"index {at} of a row of {len(self.row)} values: allowed is 0 to {len(self.row) - 1}")
            return at

    def pointer(row):
        """The row, checked."""
        return CheckedRow(row)

    def view(block, first, count):
        """``count`` values of the block from ``first`` on."""
        if count and not 0 <= first <= first + count <= len(block):
            raise IndexError(f"values {first} to {first + count} of a row of {len(block)} values")
        return CheckedRow(block.row[first : first + count])

else:

    @intrinsic
    def pointer(typingctx, row):
        """Address of a contiguous row."""

        def codegen(context, builder, signature, args):
            return cgutils.pointer_add(builder, make_array(signature.args[0])(context, builder, args[0]).data, 0)

        return types.CPointer(row.dtype)(row), codegen

    @intrinsic
    def view(typingctx, block, first, count):
        """Array of ``count`` values of a block from ``first`` on; it lies in the block and cannot be returned."""
        kind = types.Array(block.dtype, 1, "C")

        def codegen(context, builder, signature, args):
            array = make_array(kind)(context, builder)
            size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
            data = builder.gep(args[0], [args[1]])
            populate_array(array, data=data, shape=[args[2]], strides=[size], itemsize=size, meminfo=None)
            return array._getvalue()

        return kind(block, types.intp, types.intp), codegen
