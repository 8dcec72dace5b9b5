"""How the kernel is compiled.

Inner functions get no Python wrappers, which would cost most of the compile time. Reference counting is off (``_nrt``): nothing in the
kernel allocates, the caller keeps every array alive, and counting at each access took four fifths of the run time.
"""

from __future__ import annotations

from numba import njit

OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False}

compiled = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
