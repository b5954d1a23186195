"""Chunk cursors and passive waiting, compiled: how the threads of a team share an operation and meet at its end.

A cursor and its counter of finished chunks carry the iteration's epoch. Waiting is a short spin, then a futex: a neighbour gets the core.
"""

from numba import njit

from headway.kernels.cpu import layout as at
from headway.kernels.cpu.machine import FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE, add, cycles, futex, get, load, pause, swap_if


@njit(nogil=True)
def has_work(control, epoch):
    c = load(control)
    return (c >> 32) == epoch and (c & 0xFFFF) < ((c >> 16) & 0xFFFF)


@njit(nogil=True)
def take(control, epoch, thread):
    """Next chunk, or -1. Even threads take from the front, odd ones from the back: each streams its own half of the weights."""
    while True:
        c = load(control)
        first, end = c & 0xFFFF, (c >> 16) & 0xFFFF
        if (c >> 32) != epoch or first >= end:
            return -1
        if thread & 1:
            if swap_if(control, c, c - 65536) == c:
                return end - 1
        elif swap_if(control, c, c + 1) == c:
            return first


@njit(nogil=True)
def wake(team):
    if load(team + at.TEAM_SLEEPERS) > 0:
        add(team + at.TEAM_FUTEX, 1)
        futex(team + at.TEAM_FUTEX, FUTEX_WAKE_PRIVATE, 1 << 30, 0)


@njit(nogil=True)
def finish(team, control, epoch, mine, total):
    """Report finished chunks; return when all are (or the team stops): a short spin, then asleep."""
    done = control + 64
    full = (epoch << 32) | total
    if mine > 0 and add(done, mine) + mine == full:
        wake(team)
        return
    start = cycles()
    limit = get(team + at.TEAM_SPIN)
    while True:
        if load(done) >= full:  # also true for a later epoch
            return
        if cycles() - start > limit:
            break
        pause()
    add(team + at.TEAM_SLEEPERS, 1)
    while True:
        f = load(team + at.TEAM_FUTEX)
        if load(done) >= full or load(team + at.TEAM_STOP) != 0:
            break
        futex(team + at.TEAM_FUTEX, FUTEX_WAIT_PRIVATE, f & 0xFFFFFFFF, team + at.TEAM_TIMEOUT)
    add(team + at.TEAM_SLEEPERS, -1)


@njit(nogil=True)
def await_epoch(team, seen):
    start = cycles()
    limit = get(team + at.TEAM_SPIN)
    while load(team + at.TEAM_EPOCH) == seen and load(team + at.TEAM_STOP) == 0:
        if cycles() - start < limit:
            pause()
            continue
        add(team + at.TEAM_SLEEPERS, 1)
        f = load(team + at.TEAM_FUTEX)
        if load(team + at.TEAM_EPOCH) == seen and load(team + at.TEAM_STOP) == 0:
            futex(team + at.TEAM_FUTEX, FUTEX_WAIT_PRIVATE, f & 0xFFFFFFFF, team + at.TEAM_TIMEOUT)
        add(team + at.TEAM_SLEEPERS, -1)
    return load(team + at.TEAM_EPOCH)
