"""Compiled scores of one node for one worker: fragmentation gradient descent, power, and the published best fit.

All functions read the raw state of a node and change nothing: ``gpu_free`` int16 ``[gpus]`` free thousandths of its GPUs, ``cpu_free`` and
``memory_free`` free thousandths of a CPU and MiB. A worker asks for ``gpu_milli`` (0, a share below 1000, or whole GPUs), ``cpu_milli`` and
``memory_mib``. Definition and sources: docs/fragmentation.md.
"""

from __future__ import annotations

from envs.kernel_compile import compiled

WHOLE = 1000
TOP = 100
NO_GPU = -1
THREADS_PER_CORE = 2
GPU_IDLE_MW, GPU_FULL_MW, SOCKET_IDLE_MW, SOCKET_FULL_MW, SOCKET_CORES = range(5)
WATTS_FIELDS = 5


@compiled
def holds(gpu_free, cpu_free, memory_free, gpu_milli, cpu_milli, memory_mib):
    """Whether the node can take the worker now."""
    if cpu_milli > cpu_free or memory_mib > memory_free:
        return False
    if gpu_milli == 0:
        return True
    each = min(gpu_milli, WHOLE)
    wanted = max(gpu_milli // WHOLE, 1)
    for g in range(len(gpu_free)):
        if gpu_free[g] >= each:
            wanted -= 1
            if wanted == 0:
                return True
    return False


@compiled
def fragmentation(table, gpu_free, cpu_free, model, share_gpu, share_milli, whole_gpus):
    """Parts (see `FragmentTable`) of the node's free GPUs that typical workers cannot use.

    ``share_milli`` less are free on GPU ``share_gpu`` (-1 = none), and ``whole_gpus`` of the wholly free GPUs are taken.
    """
    total = -share_milli - WHOLE * whole_gpus
    for g in range(len(gpu_free)):
        total += gpu_free[g]
    if total == 0:
        return 0
    parts = table.no_gpu_count[0] * total
    for level in range(len(table.level_milli)):
        each = table.level_milli[level]
        fitting, unfit = -whole_gpus, 0
        for g in range(len(gpu_free)):
            free = gpu_free[g] - (share_milli if g == share_gpu else 0)
            if free >= each:
                fitting += 1
            else:
                unfit += free
        for kind in range(table.level_first[level], table.level_first[level + 1]):
            may = table.gpus[kind] <= fitting and table.cpu_milli[kind] <= cpu_free and (table.models[kind] >> model) & 1 != 0
            parts += table.count[kind] * (unfit if may else total)
    return parts


@compiled
def score_of_fall(table, fall_parts):
    """floor(100 sigmoid(fall in thousandths / 1000)), by the thresholds of the table."""
    low, high = 0, len(table.score_parts)
    while low < high:
        middle = (low + high) // 2
        if table.score_parts[middle] <= fall_parts:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def fgd_score(table, gpu_free, cpu_free, model, before, gpu_milli, cpu_milli):
    """Score 0..99 of a node that can take the worker, and the GPU that a share takes (-1 for the others).

    ``before`` is the node's fragmentation now. A share goes where the score is best, to the lowest index on ties.
    """
    share = gpu_milli if gpu_milli < WHOLE else 0
    best, chosen = -1, NO_GPU
    for g in range(len(gpu_free) if share > 0 else 1):
        # GPUs with equally much free give the same score, and the first of them is kept.
        skip = share > 0 and gpu_free[g] < share
        for earlier in range(g):
            skip |= gpu_free[earlier] == gpu_free[g]
        if not skip:
            after = fragmentation(table, gpu_free, cpu_free - cpu_milli, model, g, share, gpu_milli // WHOLE)
            score = score_of_fall(table, before - after)
            if score > best:
                best, chosen = score, g if share > 0 else NO_GPU
    return best, chosen


@compiled
def best_fit_score(gpu_free, cpu_free, gpu_milli, cpu_milli, largest_gpu_milli, largest_cpu_milli):
    """floor(100 - 50 left GPUs / largest node's GPUs - 50 left CPUs / largest node's CPUs) of a node that can take the worker."""
    left = -gpu_milli
    for g in range(len(gpu_free)):
        left += gpu_free[g]
    whole = largest_gpu_milli * largest_cpu_milli
    return (TOP * whole - TOP // 2 * (left * largest_cpu_milli + (cpu_free - cpu_milli) * largest_gpu_milli)) // whole


@compiled
def tightest_gpu(gpu_free, gpu_milli):
    """The fitting GPU with the fewest free thousandths, lowest index on ties; -1 when none fits."""
    chosen = NO_GPU
    for g in range(len(gpu_free)):
        if gpu_free[g] >= gpu_milli and (chosen < 0 or gpu_free[g] < gpu_free[chosen]):
            chosen = g
    return chosen


@compiled
def _active_sockets(cpu_free, cpu_capacity, cores):
    thread_milli = THREADS_PER_CORE * WHOLE
    working = (cpu_capacity + thread_milli - 1) // thread_milli - cpu_free // thread_milli
    return (working + cores - 1) // cores


@compiled
def node_mw(watts, gpu_free, cpu_free, cpu_capacity):
    """Milliwatts of the node's GPUs and CPU sockets: a GPU or socket that anything uses draws all its watts. ``watts`` int64 [5]."""
    milliwatts = 0
    for g in range(len(gpu_free)):
        milliwatts += watts[GPU_IDLE_MW] if gpu_free[g] == WHOLE else watts[GPU_FULL_MW]
    active = _active_sockets(cpu_free, cpu_capacity, watts[SOCKET_CORES])
    sockets = _active_sockets(0, cpu_capacity, watts[SOCKET_CORES])
    return milliwatts + active * watts[SOCKET_FULL_MW] + (sockets - active) * watts[SOCKET_IDLE_MW]


@compiled
def added_mw(watts, gpu_free, cpu_free, cpu_capacity, gpu_milli, cpu_milli):
    """Milliwatts that the worker adds to a node that can take it, a share on the GPU where it adds least."""
    woken = gpu_milli // WHOLE
    if 0 < gpu_milli < WHOLE:
        woken = 1
        for g in range(len(gpu_free)):
            if gpu_milli <= gpu_free[g] < WHOLE:
                woken = 0
    sockets = _active_sockets(cpu_free - cpu_milli, cpu_capacity, watts[SOCKET_CORES])
    sockets -= _active_sockets(cpu_free, cpu_capacity, watts[SOCKET_CORES])
    return woken * (watts[GPU_FULL_MW] - watts[GPU_IDLE_MW]) + sockets * (watts[SOCKET_FULL_MW] - watts[SOCKET_IDLE_MW])


@compiled
def pwr_score(added, least, most):
    """0..100, 100 for the node that adds the fewest milliwatts; ``least`` and ``most`` over all nodes that can take the worker."""
    return TOP if most == least else (most - added) * TOP // (most - least)
