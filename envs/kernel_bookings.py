"""Compiled list of bookings: where and when the planner expects jobs to run."""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_compile import compiled


@compiled
def book(c, job, p, start_s, end_s, low, high):
    """Note where and when a job, which has no booking, is to run."""
    o, i = c.o, c.i
    a = o[fx.I_BOOKING] + job * fx.BOOKING_WIDTH
    i[a + fx.BOOKED_POOL], i[a + fx.BOOKED_START_S], i[a + fx.BOOKED_END_S] = p, start_s, end_s
    i[a + fx.BOOKED_LOW], i[a + fx.BOOKED_HIGH] = low, high
    i[a + fx.BOOKED_AT] = i[fx.N_BOOKED]
    i[o[fx.I_BOOKED] + i[fx.N_BOOKED]] = job
    i[fx.N_BOOKED] += 1


@compiled
def unbook(c, job):
    """Forget a job's booking, if it has one."""
    o, i = c.o, c.i
    a = o[fx.I_BOOKING] + job * fx.BOOKING_WIDTH
    if i[a + fx.BOOKED_POOL] < 0:
        return
    i[a + fx.BOOKED_POOL] = -1
    i[fx.N_BOOKED] -= 1
    last = i[o[fx.I_BOOKED] + i[fx.N_BOOKED]]
    i[o[fx.I_BOOKED] + i[a + fx.BOOKED_AT]] = last
    i[o[fx.I_BOOKING] + last * fx.BOOKING_WIDTH + fx.BOOKED_AT] = i[a + fx.BOOKED_AT]
