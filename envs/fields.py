"""Places of the simulator's quantities in its packed arrays (``envs.packed``).

A compiled function that takes a hundred arrays takes minutes to compile and microseconds to enter; these groups bring it down to thirty.
"""

from __future__ import annotations

# one value per environment
ENV_I = (
    "time_s",
    "window",
    "done",
    "asking",
    "in_scan",
    "cursor",
    "arrived",
    "unfinished",
    "decisions",
    "last_decision_s",
    "reserved_pool",
    "reserved_shadow_s",
    "reserved_extra",
    "waiting",
    "waiting_milli",
    "n_running",
    "scored",
    "log_count",
    "n_scan",
)
(
    TIME_S,
    WINDOW,
    DONE,
    ASKING,
    IN_SCAN,
    CURSOR,
    ARRIVED,
    UNFINISHED,
    DECISIONS,
    LAST_DECISION_S,
    RESERVED_POOL,
    RESERVED_SHADOW_S,
    RESERVED_EXTRA,
    N_WAITING,
    WAITING_MILLI,
    N_RUNNING,
    SCORED,
    LOG_COUNT,
    N_SCAN,
) = range(len(ENV_I))

# one value per environment
ENV_F = ("objective_usd", "regret_usd", "marked_usd", "marked_regret", "busy_gpu_s")
OBJECTIVE_USD, REGRET_USD, MARKED_USD, MARKED_REGRET, BUSY_GPU_S = range(len(ENV_F))

# per job; ``record_head`` has one more place, the free list
JOB_I = (
    "status",
    "start_s",
    "end_s",
    "due_s",
    "pool",
    "level",
    "violation",
    "end_heap",
    "start_heap",
    "hold_heap",
    "running",
    "running_at",
    "scratch",
    "record_head",
)
STATUS, START_S, END_S, DUE_S, POOL, LEVEL, VIOLATION, END_HEAP, START_HEAP, HOLD_HEAP, RUNNING_LIST, RUNNING_AT, SCRATCH, RECORD_HEAD = (
    range(len(JOB_I))
)

# per job
JOB_F = ("job_kwh", "job_usd", "job_kg", "job_penalty", "planned_usd")
JOB_KWH, JOB_USD, JOB_KG, JOB_PENALTY, PLANNED_USD = range(len(JOB_F))

# per node; the idle list has one more place, its head
NODE_I = ("node_state", "node_whole", "node_free", "wake_end_s", "idle_since_s", "idle_next", "idle_prev", "tired", "wake_heap")
NODE_STATE, NODE_WHOLE, NODE_FREE, WAKE_END_S, IDLE_SINCE_S, IDLE_NEXT, IDLE_PREV, TIRED, WAKE_HEAP = range(len(NODE_I))

# per pool; ``state_count`` is one row per node state
POOL_I = ("idle_awake", "tired_count", "pool_free", "pool_partial", "pool_running", "start_delay_s", "nodes_woken", "state_count")
IDLE_AWAKE, TIRED_COUNT, POOL_FREE, POOL_PARTIAL, POOL_RUNNING, START_DELAY_S, NODES_WOKEN, STATE_COUNT = range(len(POOL_I))

# per allocation record
RECORD_I = ("record_node", "record_gpu", "record_bits", "record_next")
RECORD_NODE, RECORD_GPU, RECORD_BITS, RECORD_NEXT = range(len(RECORD_I))

# per site
SITE_F = ("dynamic_w", "site_running")
DYNAMIC_W, SITE_RUNNING = range(len(SITE_F))

# per action
ACTION_I = ("mask", "expected_start_s", "expected_end_s")
MASK, EXPECTED_START_S, EXPECTED_END_S = range(len(ACTION_I))

# per action
ACTION_F = ("expected_usd", "expected_kwh", "expected_late")
EXPECTED_USD, EXPECTED_KWH, EXPECTED_LATE = range(len(ACTION_F))

# per pool, of the cluster
STATIC_POOL_I = ("pool_site", "pool_first_node", "pool_nodes", "pool_gpus", "wake_latency_s")
POOL_SITE, POOL_FIRST_NODE, POOL_NODES, POOL_GPUS, WAKE_LATENCY_S = range(len(STATIC_POOL_I))

# per pool, of the cluster
STATIC_POOL_F = ("gpu_idle_w", "node_idle_w", "cpu_w_per_gpu", "node_sleep_w", "wake_power_w")
GPU_IDLE_W, NODE_IDLE_W, CPU_W_PER_GPU, NODE_SLEEP_W, WAKE_POWER_W = range(len(STATIC_POOL_F))

# per node, of the cluster
STATIC_NODE_I = ("node_pool", "node_first_gpu")
NODE_POOL, NODE_FIRST_GPU = range(len(STATIC_NODE_I))

# per pool, level and class
CURVE = ("speed", "gpu_power_w")
SPEED, GPU_POWER_W = range(len(CURVE))

# per class
KIND_I = ("deferrable", "start_bound")
DEFERRABLE, START_BOUND = range(len(KIND_I))

# per job of a window; ``rank`` and its inverse are one row per queue order each
WORK_I = (
    "submit_s",
    "duration_s",
    "estimate_s",
    "gpu_milli",
    "workers",
    "kind",
    "latest_start_s",
    "deadline_s",
    "reject",
    "rank",
    "by_rank",
)
SUBMIT_S, DURATION_S, ESTIMATE_S, GPU_MILLI, WORKERS, KIND, LATEST_START_S, DEADLINE_S, REJECT, RANK = range(10)
BY_RANK = RANK + 4

# per window
WINDOW_I = ("step_s", "history_steps", "start_s")
STEP_S, HISTORY_STEPS, WEEK_S = range(len(WINDOW_I))

# per site and step of a window
GRID_VALUES = ("price", "carbon", "renewable", "pue", "cum_price", "cum_carbon", "cum_pue")
PRICE, CARBON_KG, RENEWABLE, PUE, CUM_PRICE, CUM_CARBON, CUM_PUE = range(len(GRID_VALUES))

# per environment
PARAMS_I = ("node_rule", "sleep_after_s", "discipline", "queue_order", "hold_s", "plan_regret")
NODE_RULE, SLEEP_AFTER_S, DISCIPLINE, QUEUE_ORDER, HOLD_S, PLAN_REGRET = range(len(PARAMS_I))

# per environment; ``weights`` are four rows
PARAMS_F = (
    "hold_margin",
    "carbon_usd_per_kg",
    "energy_usd_per_kwh",
    "late_usd_per_gpu_hour",
    "late_cap_hours",
    "miss_usd_per_gpu",
    "scale_usd",
    "weights",
)
HOLD_MARGIN, CARBON_USD_PER_KG, ENERGY_USD_PER_KWH, LATE_USD_PER_GPU_HOUR, LATE_CAP_HOURS, MISS_USD_PER_GPU, SCALE_USD, WEIGHTS = range(
    len(PARAMS_F)
)
