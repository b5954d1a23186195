"""Interval arithmetic over a mask's code: whether a rectangle of (q, kv) is empty, full or partly visible. Sound: never empty by mistake.

A register is three float64: low, high and *hopeless*, which says that a smaller rectangle would not help, so that the planner stops
cutting where a mask reads what it cannot know. Compiled into the planner (plan_loop.py) and, alone, as `classify`.
"""

from numba import njit

from headway.kernels.cpu import plan_words as w
from headway.kernels.cpu.machine import get, get_f64, put_f64

INF = float("inf")
I32_LOW, I32_HIGH = -2147483648.0, 2147483647.0
EMPTY, PARTIAL, FULL, HOPELESS = 0, 1, 2, 3


@njit(nogil=True)
def buffer_range(table, low, high, low2, high2, rank):
    """(min, max) of a captured buffer over an index box, from its block table."""
    minima, n0, n1, block = get(table), get(table + 8), get(table + 16), get(table + 24)
    a, b = max(0.0, min(low, n0 - 1.0)), max(0.0, min(high, n0 - 1.0))
    if rank == 2:
        c, d = max(0.0, min(low2, n1 - 1.0)), max(0.0, min(high2, n1 - 1.0))
        if a == b:
            first, last = int(a) * n1 + int(c), int(a) * n1 + int(d)
        else:
            first, last = int(a) * n1, int(b) * n1 + n1 - 1
    else:
        first, last = int(a), int(b)
    first, last = first // block, last // block
    x, y = INF, -INF
    for i in range(first, last + 1):
        x = min(x, get_f64(minima + 16 * i))
        y = max(y, get_f64(minima + 16 * i + 8))
    return x, y


@njit(nogil=True)
def divide(x0, x1, y0, y1, floor):
    """x / y by corners; unknown where y may be 0."""
    if y0 <= 0.0 <= y1 or x0 == -INF or x1 == INF:
        return -INF, INF
    a, b, c, d = x0 / y0, x0 / y1, x1 / y0, x1 / y1
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    if floor:
        low, high = low // 1.0, high // 1.0
    return low, high


@njit(nogil=True)
def evaluate(p, registers, inputs):
    """EMPTY, PARTIAL, FULL or HOPELESS (partial, and smaller rectangles are too) of the box `inputs` [q, kv, b, h, kv_head, row][2]."""
    code, values, buffers, n = get(p + 8 * w.W_CODE), get(p + 8 * w.W_VALUES), get(p + 8 * w.W_BUFFERS), get(p + 8 * w.W_CODE_LENGTH)
    for i in range(n):
        at = code + 8 * w.CODE_WORDS * i
        op, a, b, c, kind = get(at), get(at + 8), get(at + 16), get(at + 24), get(at + 32)
        ra, rb, rc, out = registers + 24 * a, registers + 24 * b, registers + 24 * c, registers + 24 * i
        low, high, hopeless = -INF, INF, 0.0
        if op == 0:
            low, high = get_f64(inputs + 16 * a), get_f64(inputs + 16 * a + 8)
        elif op == 1:
            low, high = get_f64(values + 16 * i), get_f64(values + 16 * i + 8)
        elif op == 25:
            hopeless = 1.0
        elif op <= 3:
            table = buffers + 8 * w.TABLE_WORDS * c
            if get(table + 32) == 0:
                hopeless = 1.0
            elif op == 2:
                low, high = buffer_range(table, get_f64(ra), get_f64(ra + 8), 0.0, 0.0, 1)
                hopeless = get_f64(ra + 16)
            else:
                low, high = buffer_range(table, get_f64(ra), get_f64(ra + 8), get_f64(rb), get_f64(rb + 8), 2)
                hopeless = max(get_f64(ra + 16), get_f64(rb + 16))
        else:
            x0, x1, hx = get_f64(ra), get_f64(ra + 8), get_f64(ra + 16)
            y0, y1, hy = get_f64(rb), get_f64(rb + 8), get_f64(rb + 16)
            hopeless = max(hx, hy)
            if op == 4:
                low, high = x0 + y0, x1 + y1
            elif op == 5:
                low, high = x0 - y1, x1 - y0
            elif op == 6:
                if x0 > -INF and x1 < INF and y0 > -INF and y1 < INF:
                    s, t, u, v = x0 * y0, x0 * y1, x1 * y0, x1 * y1
                    low, high = min(min(s, t), min(u, v)), max(max(s, t), max(u, v))
            elif op == 7:
                low, high = divide(x0, x1, y0, y1, False)
            elif op == 8:
                low, high = divide(x0, x1, y0, y1, True)
            elif op == 9:
                # one period: the remainder moves with x; else all of [0, y), and below a block's width it stays so
                if y0 == y1 and y0 > 0.0 and x0 > -INF and x1 < INF:
                    if x0 // y0 == x1 // y0:
                        low, high = x0 - y0 * (x0 // y0), x1 - y0 * (x0 // y0)
                    else:
                        low, high = 0.0, y0
                        if y0 <= 16.0 and x0 != x1:
                            hopeless = 1.0
            elif op == 10:
                low, high = min(x0, y0), min(x1, y1)
            elif op == 11:
                low, high = max(x0, y0), max(x1, y1)
            elif op == 12:
                high = max(abs(x0), abs(x1))
                low = 0.0 if x0 <= 0.0 <= x1 else min(abs(x0), abs(x1))
            elif op <= 16:
                # lt, le: whether x < y; gt, ge: y < x
                if op == 15 or op == 16:
                    x0, x1, y0, y1 = y0, y1, x0, x1
                if op == 13 or op == 15:
                    low, high = 1.0 if x1 < y0 else 0.0, 1.0 if x0 < y1 else 0.0
                else:
                    low, high = 1.0 if x1 <= y0 else 0.0, 1.0 if x0 <= y1 else 0.0
            elif op == 17 or op == 18:
                same = 1.0 if x0 == x1 and y0 == y1 and x0 == y0 else 0.0
                meet = 1.0 if x0 <= y1 and y0 <= x1 else 0.0
                low, high = same, meet
                if op == 18:
                    low, high = 1.0 - meet, 1.0 - same
            elif op == 19 or op == 20:
                if op == 19:
                    low, high = min(x0, y0), min(x1, y1)
                else:
                    low, high = max(x0, y0), max(x1, y1)
                # hopeless only if every side that is still open is
                hopeless = 1.0 if (x0 == x1 or hx > 0.0) and (y0 == y1 or hy > 0.0) else 0.0
            elif op == 21:
                low, high, hopeless = 1.0 - x1, 1.0 - x0, hx
            elif op == 22:
                z0, z1, hz = get_f64(rc), get_f64(rc + 8), get_f64(rc + 16)
                if x0 == 1.0:
                    low, high, hopeless = y0, y1, hy
                elif x1 == 0.0:
                    low, high, hopeless = z0, z1, hz
                else:
                    low, high, hopeless = min(y0, z0), max(y1, z1), max(max(hx, hy), hz)
            elif op == 23:
                low, high, hopeless = x0, x1, hx
            elif op == 24:
                low = x0 // 1.0 if x0 >= 0.0 else -((-x0) // 1.0)
                high = x1 // 1.0 if x1 >= 0.0 else -((-x1) // 1.0)
                hopeless = hx
        if low != low or high != high:
            low, high = -INF, INF
        if kind == 1:  # the kernels compute in float32
            low, high = low - abs(low) * 1e-6, high + abs(high) * 1e-6
            if low != low or high != high:
                low, high = -INF, INF
        elif kind == 2 and (low < I32_LOW or high > I32_HIGH):
            low, high = I32_LOW, I32_HIGH
        put_f64(out, low)
        put_f64(out + 8, high)
        put_f64(out + 16, hopeless)
    last = registers + 24 * (n - 1)
    if get_f64(last + 8) == 0.0:
        return EMPTY
    if get_f64(last) == 1.0:
        return FULL
    return HOPELESS if get_f64(last + 16) > 0.0 else PARTIAL


def classify(p, registers, inputs):
    """`evaluate` by itself, for tests and pictures."""
    return evaluate(p, registers, inputs)
