"""Places of the simulator's quantities in its blocks of memory (``envs.kernel_compile.Blocks``, ``envs.packed``).

What belongs to one job, node, pool or site lies side by side, so that touching it costs one or two cache lines: field ``F`` of job ``x`` is
``block[o[JOBS] + x * JOB_WIDTH + F]``. The ``o`` block holds where each part begins.
"""

from __future__ import annotations

# ---------------------------------------------------------------- parts and sizes, in ``o``

OFFSETS = (
    # sizes
    "N_JOBS", "N_NODES", "N_POOLS", "N_SITES", "N_LEVELS", "N_CURVES", "N_COLUMNS", "N_ACTIONS", "N_SHAPES", "N_TREE", "N_SHORT",
    "N_RECORDS", "N_GPUS",
    "N_RACKS", "N_LOG", "HAS_BUDGET", "HAS_LEASES", "HAS_AWAKE", "N_TYPICAL",
    # cluster
    "K_POOL", "K_NODE", "K_KIND", "K_SITE", "KF_POOL", "KF_SPEED", "KF_POWER", "KF_LEVEL", "KF_LOGIT",
    # jobs of a window
    "J_JOB", "J_ALLOWED", "J_RANK", "J_SLOT", "J_AT_SLOT", "J_SHAPE", "J_HELD", "J_TYPICAL", "J_TYPICAL_OF", "JF_JOB",
    # grid of a window
    "G_RESERVE", "G_AWAKE", "G_OUTAGE", "GF_VALUES", "GF_LOAD",
    # state
    "I_JOB", "I_NODE", "I_POOL", "I_SITE", "I_WHOLE", "I_GPU", "I_RECORD", "I_RACK", "I_READY", "I_TREE", "I_SHAPE", "I_BLOCKED",
    "I_SKIPPED",
    "I_RUNNING", "I_SCRATCH", "I_SCAN", "I_ENDS", "I_ENDS_AT", "I_TIMERS", "I_TIMERS_AT", "I_WAKES", "I_WAKES_AT", "I_ACTION",
    "I_SHORT", "I_LEAVES", "I_LEAVES_AT", "I_N_LEAVES", "I_TYPICAL", "I_WATTS", "I_USED", "F_RANK",
    "I_BOOKING", "I_BOOKED", "I_CALENDAR", "I_ORDER",
    "F_JOB", "F_SITE", "F_IDLE", "F_ACTION", "F_RATE", "F_SCORE", "F_BEGIN", "F_SLOT", "F_TRUE", "F_PLAN", "I_END", "F_END",
)  # fmt: skip
(
    N_JOBS, N_NODES, N_POOLS, N_SITES, N_LEVELS, N_CURVES, N_COLUMNS, N_ACTIONS, N_SHAPES, N_TREE, N_SHORT, N_RECORDS, N_GPUS,
    N_RACKS, N_LOG, HAS_BUDGET, HAS_LEASES, HAS_AWAKE, N_TYPICAL,
    K_POOL, K_NODE, K_KIND, K_SITE, KF_POOL, KF_SPEED, KF_POWER, KF_LEVEL, KF_LOGIT,
    J_JOB, J_ALLOWED, J_RANK, J_SLOT, J_AT_SLOT, J_SHAPE, J_HELD, J_TYPICAL, J_TYPICAL_OF, JF_JOB,
    G_RESERVE, G_AWAKE, G_OUTAGE, GF_VALUES, GF_LOAD,
    I_JOB, I_NODE, I_POOL, I_SITE, I_WHOLE, I_GPU, I_RECORD, I_RACK, I_READY, I_TREE, I_SHAPE, I_BLOCKED, I_SKIPPED,
    I_RUNNING, I_SCRATCH, I_SCAN, I_ENDS, I_ENDS_AT, I_TIMERS, I_TIMERS_AT, I_WAKES, I_WAKES_AT, I_ACTION, I_SHORT, I_LEAVES,
    I_LEAVES_AT, I_N_LEAVES, I_TYPICAL, I_WATTS, I_USED, F_RANK,
    I_BOOKING, I_BOOKED, I_CALENDAR, I_ORDER,
    F_JOB, F_SITE, F_IDLE, F_ACTION, F_RATE, F_SCORE, F_BEGIN, F_SLOT, F_TRUE, F_PLAN, I_END, F_END,
) = range(len(OFFSETS))  # fmt: skip

# ---------------------------------------------------------------- cluster

# per pool; watts of a node by state in whole nanowatts, 0 budgets and capacities = none
POOL_CONSTANTS = (
    "pool_site", "pool_first_node", "pool_nodes", "pool_gpus", "wake_latency_s", "awake_nw", "waking_nw", "sleeping_nw",
    "committed_waking_nw",
    "cpu_milli", "memory_mib", "nodes_per_rack", "first_rack", "rack_budget_nw", "pool_budget_nw",
)  # fmt: skip
(
    POOL_SITE, POOL_FIRST_NODE, POOL_NODES, POOL_GPUS, WAKE_LATENCY_S, AWAKE_NW, WAKING_NW, SLEEPING_NW, COMMITTED_WAKING_NW,
    POOL_CPU_MILLI, POOL_MEMORY_MIB, NODES_PER_RACK, FIRST_RACK, RACK_BUDGET_NW, POOL_BUDGET_NW,
) = range(len(POOL_CONSTANTS))  # fmt: skip
POOL_CONSTANTS_WIDTH = 16

POOL_WATTS = (
    "gpu_idle_w",
    "gpu_context_w",
    "cpu_w_per_gpu",
    "cpu_w_per_cpu",
    "share_w",
)  # share_w: idle watts of a node for each of its GPUs
GPU_IDLE_W, GPU_CONTEXT_W, CPU_W_PER_GPU, CPU_W_PER_CPU, SHARE_W = range(len(POOL_WATTS))
POOL_WATTS_WIDTH = len(POOL_WATTS)

NODE_CONSTANTS = ("node_pool", "node_first_gpu")
NODE_POOL, NODE_FIRST_GPU = range(len(NODE_CONSTANTS))
NODE_CONSTANTS_WIDTH = len(NODE_CONSTANTS)

KIND_CONSTANTS = ("deferrable", "start_bound")
DEFERRABLE, START_BOUND = range(len(KIND_CONSTANTS))
KIND_CONSTANTS_WIDTH = len(KIND_CONSTANTS)

SITE_CONSTANTS = ("site_budget_nw",)
SITE_BUDGET_NW = 0
SITE_CONSTANTS_WIDTH = len(SITE_CONSTANTS)

# ---------------------------------------------------------------- jobs of a window

JOB_COUNT, SHAPE_COUNT = 0, 1  # first values of the block
JOB_CONSTANTS = (
    "submit_s", "duration_s", "estimate_s", "asked_milli", "workers", "kind", "curve", "latest_start_s", "deadline_s", "reject", "shape",
    "preemptible", "checkpoint_s", "restart_s", "data_site", "transfer_s", "until_s", "service",
)  # fmt: skip
(
    SUBMIT_S, DURATION_S, ESTIMATE_S, ASKED_MILLI, WORKERS, KIND, CURVE, LATEST_START_S, DEADLINE_S, REJECT, SHAPE,
    PREEMPTIBLE, CHECKPOINT_S, RESTART_S, DATA_SITE, TRANSFER_S, UNTIL_S, SERVICE,
) = range(len(JOB_CONSTANTS))  # fmt: skip
JOB_CONSTANTS_WIDTH = 18

JOB_FACTORS = ("utilization", "transfer_kwh")
UTILIZATION, TRANSFER_KWH = range(len(JOB_FACTORS))
JOB_FACTORS_WIDTH = len(JOB_FACTORS)

# what decides whether there is room; jobs of a shape are consecutive slots, in queue order
SHAPE_CONSTANTS = ("shape_first", "shape_end", "shape_workers", "shape_cpu_milli", "shape_memory_mib")
SHAPE_FIRST, SHAPE_END, SHAPE_WORKERS, SHAPE_CPU_MILLI, SHAPE_MEMORY_MIB = range(len(SHAPE_CONSTANTS))
SHAPE_CONSTANTS_WIDTH = len(SHAPE_CONSTANTS)

# kinds of workers among which the typical ones are (docs/fragmentation.md), by thousandths of one GPU, GPUs, CPUs and pools, all rising;
# kind_first: place among kinds that are equally frequent; unused rows are never counted
TYPICAL_CONSTANTS = ("kind_each_milli", "kind_gpus", "kind_cpu_milli", "kind_pools", "kind_first")
KIND_EACH_MILLI, KIND_GPUS, KIND_CPU_MILLI, KIND_POOLS, KIND_FIRST = range(len(TYPICAL_CONSTANTS))
TYPICAL_WIDTH = len(TYPICAL_CONSTANTS)

# ---------------------------------------------------------------- grid of a window

STEP_S, HISTORY_STEPS, WEEK_S, OUTAGE_COUNT, KEEPS_AWAKE = range(5)  # first values of the block
OUTAGE_FIELDS = ("outage_time_s", "outage_begins", "outage_node", "outage_until_s")
OUTAGE_TIME_S, OUTAGE_BEGINS, OUTAGE_NODE, OUTAGE_UNTIL_S = range(len(OUTAGE_FIELDS))
OUTAGE_WIDTH = len(OUTAGE_FIELDS)

# rows of N_COLUMNS + 1 values, one for each site
GRID_VALUES = ("price", "carbon", "renewable", "pue", "cum_price", "cum_carbon", "cum_pue")
PRICE, CARBON_KG, RENEWABLE, PUE, CUM_PRICE, CUM_CARBON, CUM_PUE = range(len(GRID_VALUES))

# ---------------------------------------------------------------- settings

PARAMS_I = (
    "node_rule", "sleep_after_s", "discipline", "queue_order", "hold_s", "plan_regret", "review_s", "pwr_weight_milli", "ces_buffer",
    "ces_keep_s", "price_forecast", "plans",
)  # fmt: skip
(
    NODE_RULE, SLEEP_AFTER_S, DISCIPLINE, QUEUE_ORDER, HOLD_S, PLAN_REGRET, REVIEW_S, PWR_WEIGHT_MILLI, CES_BUFFER,
    CES_KEEP_S, PRICE_FORECAST, PLANS,
) = range(len(PARAMS_I))  # fmt: skip

PARAMS_F = (
    "hold_margin", "carbon_usd_per_kg", "energy_usd_per_kwh", "late_usd_per_gpu_hour", "late_cap_hours", "miss_usd_per_gpu", "scale_usd",
    "w_cost", "w_carbon", "w_energy", "w_sla", "ces_trend", "threshold_quantile",
    "expected_share", "padded_share", "node_weight", "share_weight", "overbooked_usd_per_gpu_hour", "move_margin",
)  # fmt: skip
(
    HOLD_MARGIN, CARBON_USD_PER_KG, ENERGY_USD_PER_KWH, LATE_USD_PER_GPU_HOUR, LATE_CAP_HOURS, MISS_USD_PER_GPU, SCALE_USD,
    W_COST, W_CARBON, W_ENERGY, W_SLA, CES_TREND, THRESHOLD_QUANTILE,
    EXPECTED_SHARE, PADDED_SHARE, NODE_WEIGHT, SHARE_WEIGHT, OVERBOOKED_USD_PER_GPU_HOUR, MOVE_MARGIN,
) = range(len(PARAMS_F))  # fmt: skip

# ---------------------------------------------------------------- state

# first values of the block
ENV_I = (
    "time_s", "window", "done", "asking", "reviewing", "phase", "column", "arrived", "unfinished", "decisions", "last_decision_s",
    "reserved_pool", "reserved_shadow_s", "reserved_extra", "waiting", "waiting_milli", "n_running", "n_leases", "scored", "log_count",
    "n_scan",
    "released", "n_blocked", "n_skipped", "n_reviews", "next_review", "next_outage", "free_record", "rank_column", "typical_seen",
    "n_ends", "n_timers", "n_wakes",
    "n_booked", "slots_s", "planned", "plan_pool", "plan_start_s", "plan_end_s", "plan_low", "plan_high", "best_low", "best_high",
    "hindsight",
)  # fmt: skip
(
    TIME_S, WINDOW, DONE, ASKING, REVIEWING, PHASE, COLUMN, ARRIVED, UNFINISHED, DECISIONS, LAST_DECISION_S,
    RESERVED_POOL, RESERVED_SHADOW_S, RESERVED_EXTRA, N_WAITING, WAITING_MILLI, N_RUNNING, N_LEASES, SCORED, LOG_COUNT, N_SCAN,
    RELEASED, N_BLOCKED, N_SKIPPED, N_REVIEWS, NEXT_REVIEW, NEXT_OUTAGE, FREE_RECORD, RANK_COLUMN, TYPICAL_SEEN,
    N_ENDS, N_TIMERS, N_WAKES,
    N_BOOKED, SLOTS_S, PLANNED, PLAN_POOL, PLAN_START_S, PLAN_END_S, PLAN_LOW, PLAN_HIGH, BEST_LOW, BEST_HIGH, HINDSIGHT,
) = range(len(ENV_I))  # fmt: skip

ENV_F = ("objective_usd", "regret_usd", "marked_usd", "marked_regret", "busy_gpu_s", "plan_unit_usd")
OBJECTIVE_USD, REGRET_USD, MARKED_USD, MARKED_REGRET, BUSY_GPU_S, PLAN_UNIT_USD = range(len(ENV_F))

# start_s is the first start of all; begin_s, loading_s and done_s are those of the running segment; marked_s is until when it is charged
JOB_I = (
    "status", "start_s", "end_s", "due_s", "pool", "level", "violation", "begin_s", "loading_s", "done_s", "marked_s", "watts_nw",
    "share_nw",
    "lies_at", "running_at", "record_head",
)  # fmt: skip
(
    STATUS, START_S, END_S, DUE_S, POOL, LEVEL, VIOLATION, BEGIN_S, LOADING_S, DONE_S, MARKED_S, WATTS_NW, SHARE_NW,
    LIES_AT, RUNNING_AT, RECORD_HEAD,
) = range(len(JOB_I))  # fmt: skip
JOB_WIDTH = 16

JOB_F = ("job_kwh", "job_usd", "job_kg", "job_penalty", "planned_usd")
JOB_KWH, JOB_USD, JOB_KG, JOB_PENALTY, PLANNED_USD = range(len(JOB_F))
JOB_F_WIDTH = len(JOB_F)

# the list of idle nodes has one more node, its head
NODE_I = (
    "node_state", "node_free", "node_whole", "node_jobs", "cpu_free", "memory_free", "wake_end_s", "idle_since_s", "idle_next", "idle_prev",
    "tired", "down_until_s",
)  # fmt: skip
(
    NODE_STATE, NODE_FREE, NODE_WHOLE, NODE_JOBS, CPU_FREE, MEMORY_FREE, WAKE_END_S, IDLE_SINCE_S, IDLE_NEXT, IDLE_PREV,
    TIRED, DOWN_UNTIL_S,
) = range(len(NODE_I))  # fmt: skip
NODE_WIDTH = 12

# state_count is one value for each state: awake, waking, sleeping, down
POOL_I = (
    "idle_awake",
    "tired_count",
    "pool_free",
    "pool_partial",
    "committed_nw",
    "ces_target",
    "ces_keep_until_s",
    "count_awake",
    "count_waking",
    "count_sleeping",
    "count_down",
)
IDLE_AWAKE, TIRED_COUNT, POOL_FREE, POOL_PARTIAL, COMMITTED_NW, CES_TARGET, CES_KEEP_UNTIL_S, STATE_COUNT = range(8)
POOL_WIDTH = len(POOL_I)

# watts now, in nanowatts, and running thousandths of GPUs
SITE_I = ("awake_site_nw", "waking_site_nw", "sleeping_site_nw", "dynamic_nw", "shared_nw", "running_milli", "site_committed_nw")
AWAKE_SITE_NW, WAKING_SITE_NW, SLEEPING_SITE_NW, DYNAMIC_NW, SHARED_NW, RUNNING_MILLI, SITE_COMMITTED_NW = range(len(SITE_I))
SITE_WIDTH = len(SITE_I)

RECORD_I = ("record_node", "record_gpu", "record_bits", "record_woke", "record_next")
RECORD_NODE, RECORD_GPU, RECORD_BITS, RECORD_WOKE, RECORD_NEXT = range(len(RECORD_I))
RECORD_WIDTH = len(RECORD_I)

# where and when a job is to run, by the planner, pool -1 = nowhere: from start to end, or, with end -1, in the slots after start whose
# bits are set
BOOKING_I = ("booked_pool", "booked_start_s", "booked_end_s", "booked_low", "booked_high", "booked_at")
BOOKED_POOL, BOOKED_START_S, BOOKED_END_S, BOOKED_LOW, BOOKED_HIGH, BOOKED_AT = range(len(BOOKING_I))
BOOKING_WIDTH = len(BOOKING_I)
SLOT_S, N_SLOTS = 1800, 96  # of the planner's calendar, which begins now

SHAPE_I = ("shape_low", "shape_blocked", "shape_limit_s")
SHAPE_LOW, SHAPE_BLOCKED, SHAPE_LIMIT_S = range(len(SHAPE_I))
SHAPE_WIDTH = len(SHAPE_I)

ACTION_I = ("mask", "start_delay_s", "nodes_woken", "expected_start_s", "expected_end_s")
MASK, START_DELAY_S, NODES_WOKEN, EXPECTED_START_S, EXPECTED_END_S = range(len(ACTION_I))
ACTION_WIDTH = len(ACTION_I)

ACTION_F = ("expected_usd", "expected_kwh", "expected_late", "planned_action_usd", "planned_node_usd", "planned_overbooked_usd")
EXPECTED_USD, EXPECTED_KWH, EXPECTED_LATE, PLANNED_ACTION_USD, PLANNED_NODE_USD, PLANNED_OVERBOOKED_USD = range(len(ACTION_F))
ACTION_F_WIDTH = len(ACTION_F)
