"""The objective, in USD, that the reward, the judges' scores and the reports share.

reward between two decisions = -(w_cost USD + w_carbon price_c kgCO2e + w_energy price_e kWh + w_sla penalty_USD) / scale_usd; above 0
only where a price is negative.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardSpec:
    """Weights of the objective.

    Attributes:
        w_cost, w_carbon, w_energy, w_sla: weights, all at least 0.
        carbon_usd_per_kg: price of carbon (0.1 = 100 USD per tonne).
        energy_usd_per_kwh: shadow price of a kWh beyond its tariff.
        late_usd_per_gpu_hour: lateness (start after latest start, end after deadline), per requested GPU.
        late_cap_hours: lateness counted at most, per job and kind.
        miss_usd_per_gpu: fixed part per missed objective and requested GPU.
        scale_usd: divides the reward.
    """

    w_cost: float = 1.0
    w_carbon: float = 1.0
    w_energy: float = 0.0
    w_sla: float = 1.0
    carbon_usd_per_kg: float = 0.1
    energy_usd_per_kwh: float = 0.05
    late_usd_per_gpu_hour: float = 0.5
    late_cap_hours: float = 12.0
    miss_usd_per_gpu: float = 0.25
    scale_usd: float = 1.0
