"""How inner functions of the kernel are compiled: without Python wrappers, which would cost most of the compile time."""

from __future__ import annotations

from numba import njit

compiled = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
