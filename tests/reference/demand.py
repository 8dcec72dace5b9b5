"""Forecast-driven sleep (docs/simulator.md, "Demand") in plain Python over the whole history of each pool."""

from __future__ import annotations

from .model import Rules, Settings

CHECK_S, DAY, HOUR, BACK, AHEAD = 600, 144, 6, 3, 18


class Demand:
    """How many nodes of each pool shall be awake."""

    def __init__(self, rules: Rules, settings: Settings) -> None:
        self.settings = settings
        self.target = [0 for _ in rules.pools]
        self.keep_until = [0 for _ in rules.pools]
        self.seen: list[list[int]] = [[] for _ in rules.pools]  # nodes in use at each check

    def next_check(self, t: int) -> int:
        return (t // CHECK_S + 1) * CHECK_S

    def follow(self, t: int, used: list[int]) -> None:
        for p, now in enumerate(used):
            if now > self.target[p]:
                self.target[p] = now + self.settings.ces_buffer
                self.keep_until[p] = t + self.settings.ces_keep_s
            if t % CHECK_S == 0:
                lower = now + self.settings.ces_buffer
                assert len(self.seen[p]) == t // CHECK_S
                if len(self.seen[p]) < HOUR or (lower < self.target[p] and t >= self.keep_until[p] and self.falling(p, now)):
                    self.target[p] = lower
                self.seen[p].append(now)

    def falling(self, p: int, now: int) -> bool:
        seen = self.seen[p]
        fallen = sum(seen[-BACK:]) / BACK - now
        if len(seen) < DAY:
            forecast = [now - fallen] * (2 * AHEAD)
        else:
            yesterday = seen[len(seen) - DAY :]
            forecast = [now + value - yesterday[0] for value in yesterday[: 2 * AHEAD]]
        near, far = sum(forecast[:AHEAD]) / AHEAD, sum(forecast) / (2 * AHEAD)
        will_fall = now - near
        # A mean of a few whole numbers is a whole number of parts: what is left is the rounding of the division.
        trend = self.settings.ces_trend - 1e-9
        return fallen >= trend and will_fall >= trend and near >= far - 1e-9
