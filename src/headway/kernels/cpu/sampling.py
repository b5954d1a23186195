"""SampleRow: a token from logits under temperature, top-k, top-p and min-p, without sorting the vocabulary.

Rejection with a rising floor (FlashInfer's sampling kernels): draw among the weights above the floor by inverse transform; the token's own
weight decides by counting what is heavier; a refused weight becomes the floor. The accepted token has exactly the filtered distribution.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from headway.kernels.cpu.emit import F32, I1, I32, I64, Kit, Value

F64 = ir.DoubleType()
(
    LOGITS,  # float32[vocab]
    VOCAB,
    SCALE,  # float32 bits: log2(e) / temperature
    TOP_K,  # at least 1; the vocabulary's size: off
    TOP_P,  # float64 bits, in (0, 1]
    MIN_P,  # float32 bits, in [0, 1)
    SEED,
    OFFSET,  # of the draw: equal (seed, offset) draw equal numbers
    SCRATCH,  # SampleRow.scratch_bytes
    TOKEN,  # out: the token, -1 when no logit is finite or one is NaN
    ROUNDS,  # out: draws it took
) = range(11)
WORDS = 16

CHUNK_VECTORS = 64
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Call: (block of WORDS int64). Filters act in this order: top-k, then top-p of what is left, then min-p of the largest.

    Equal weights are kept or dropped together, so top-k may keep more than k. Weights are float32, 2**(SCALE * (logit - largest)); masses
    are float64 sums of them. The random numbers are splitmix64 of (seed, offset, round) (Steele et al., OOPSLA 2014).
    """

    arguments = 1
    symbol = "hw_sample_row"

    @staticmethod
    def scratch_bytes(lanes: int, vocab: int) -> int:
        chunk = lanes * CHUNK_VECTORS
        chunks = -(-vocab // chunk)
        return 4 * chunk * chunks + 8 * chunks + 64

    def emit(self, k: Kit, block: Value) -> None:
        _Emission(k, block).sample()


class _Emission:
    def __init__(self, k: Kit, block: Value) -> None:
        self.k, self.block = k, block
        b = k.b
        self.logits, self.vocab, self.weights = (k.load(block, I64, 8 * i, 8) for i in (LOGITS, VOCAB, SCRATCH))
        self.chunk = k.lanes * CHUNK_VECTORS
        self.chunks = b.udiv(b.add(self.vocab, k.i64(self.chunk - 1)), k.i64(self.chunk))
        self.sums = b.add(self.weights, b.mul(self.chunks, k.i64(4 * self.chunk)))

    def sample(self) -> None:
        k = self.k
        self._copy()
        top, sound = self._largest()
        k.store(k.i64(-1), self.block, 8 * TOKEN, 8)
        k.store(k.i64(0), self.block, 8 * ROUNDS, 8)
        k.when(sound, lambda: self._draw(top))

    def _copy(self) -> None:
        """Logits to scratch, -inf beyond the vocabulary, so that all later loops are over whole vectors."""
        k, b = self.k, self.k.b
        whole = b.udiv(self.vocab, k.i64(k.lanes))

        def vectors(i: Value, _: list[Value]) -> list[Value]:
            k.store(k.load(k.index(self.logits, i, 4 * k.lanes), k.f), k.index(self.weights, i, 4 * k.lanes))
            return []

        k.when(b.icmp_signed(">", whole, k.i64(0)), lambda: discard(k.loop(whole, [], vectors)))
        first, end = b.mul(whole, k.i64(k.lanes)), b.mul(self.chunks, k.i64(self.chunk))

        def rest(j: Value, _: list[Value]) -> list[Value]:
            i = b.add(first, j)
            inside = b.icmp_signed("<", i, self.vocab)
            at = b.select(inside, i, k.i64(0))
            x = k.load(k.index(self.logits, at, 4), F32)
            k.store(b.select(inside, x, ir.Constant(F32, float("-inf"))), k.index(self.weights, i, 4))
            return []

        k.when(b.icmp_signed("<", first, end), lambda: discard(k.loop(b.sub(end, first), [], rest)))

    def _vectors(self, initial: list[Value], body: Callable[[Value, list[Value]], list[Value]]) -> list[Value]:
        """body(address of a vector of weights, values) over all of them."""
        k = self.k
        return k.loop(k.b.mul(self.chunks, k.i64(CHUNK_VECTORS)), initial, lambda i, v: body(k.index(self.weights, i, 4 * k.lanes), v))

    def _largest(self) -> tuple[Value, Value]:
        """The largest logit, and whether it is finite and no logit is NaN."""
        k, b = self.k, self.k.b

        def body(at: Value, values: list[Value]) -> list[Value]:
            x = k.load(at, k.f)
            return [k.maximum(x, values[0]), b.or_(values[1], b.fcmp_unordered("uno", x, x))]

        lanes = ir.VectorType(I1, k.lanes)
        top, nan = self._vectors([k.vf(float("-inf")), ir.Constant(lanes, [0] * k.lanes)], body)
        largest = k.all_max(top)
        finite = b.fcmp_ordered("<", k.unary("fabs", largest), k.vf(float("inf")))
        bad = k.sum_i32(b.zext(b.or_(nan, b.not_(finite)), k.i))
        return largest, b.icmp_signed("==", bad, I32(0))

    def _heavier(self, floor: Value) -> tuple[Value, Value]:
        """(how many weights exceed `floor`, their mass in float64); leaves every chunk's mass in scratch."""
        k, b = self.k, self.k.b
        limit = k.splat(floor)

        def of_chunk(c: Value, values: list[Value]) -> list[Value]:
            at = k.index(self.weights, c, 4 * self.chunk)

            def body(i: Value, v: list[Value]) -> list[Value]:
                x = k.load(k.index(at, i, 4 * k.lanes), k.f)
                above = b.fcmp_ordered(">", x, limit)
                return [b.add(v[0], b.zext(above, k.i)), b.fadd(v[1], b.select(above, x, k.vf(0.0)))]

            count, mass = k.loop(k.i64(CHUNK_VECTORS), [k.vi(0), k.vf(0.0)], body)
            of_mass = b.fpext(k.sum_f32(mass), F64)
            k.store(of_mass, k.index(self.sums, c, 8), 0, 8)
            return [b.add(values[0], b.sext(k.sum_i32(count), I64)), b.fadd(values[1], of_mass)]

        count, mass = k.loop(self.chunks, [k.i64(0), ir.Constant(F64, 0.0)], of_chunk)
        return count, mass

    def _draw(self, top: Value) -> None:
        k, b = self.k, self.k.b
        scale = k.splat_f32(self.block, 8 * SCALE)

        def weigh(at: Value, _: list[Value]) -> list[Value]:
            x = b.fmul(b.fsub(k.load(at, k.f), top), scale)
            k.store(b.select(b.fcmp_ordered(">", x, k.vf(-126.0)), k.exp2(x), k.vf(0.0)), at)
            return []

        self._vectors([], weigh)
        top_k, top_p = k.load(self.block, I64, 8 * TOP_K, 8), k.load(self.block, F64, 8 * TOP_P, 8)
        zero = ir.Constant(F32, 0.0)
        both = b.and_(b.icmp_signed("<", top_k, self.vocab), b.fcmp_ordered("<", top_p, ir.Constant(F64, 1.0)))
        # top-p is of the mass that top-k left: only then that mass must be known before the first draw
        floor = k.choose(both, F32, lambda: self._floor_of_top_k(top_k), lambda: zero)
        _, mass = self._heavier(floor)
        least = k.load(self.block, F32, 8 * MIN_P)
        key = self._key()

        def attempt(values: list[Value]) -> tuple[list[Value], Value]:
            floor, left, rounds, _ = values
            _, token, weight = self._pick(floor, left, self._uniform(key, rounds))
            count, heavier = self._heavier(weight)
            kept = b.and_(b.icmp_signed("<", count, top_k), b.fcmp_ordered("<", heavier, b.fmul(top_p, mass)))
            kept = b.and_(kept, b.fcmp_ordered(">=", weight, least))
            # what may be kept is heavier than the refused weight, except that min-p refuses what everything heavier might pass
            again = b.not_(kept)
            return [weight, heavier, b.add(rounds, k.i64(1)), token], again

        _, _, rounds, token = k.do_while([floor, mass, k.i64(0), k.i64(0)], attempt)
        k.store(token, self.block, 8 * TOKEN, 8)
        k.store(rounds, self.block, 8 * ROUNDS, 8)

    def _floor_of_top_k(self, top_k: Value) -> Value:
        """The largest float32 that at least k weights exceed: bisection on the bits, which order positive numbers."""
        k, b = self.k, self.k.b

        def halve(values: list[Value]) -> tuple[list[Value], Value]:
            low, high = values  # at least k weights exceed `low`, fewer exceed `high`
            middle = b.lshr(b.add(low, high), I32(1))
            count, _ = self._heavier(b.bitcast(middle, F32))
            enough = b.icmp_signed(">=", count, top_k)
            low, high = b.select(enough, middle, low), b.select(enough, high, middle)
            return [low, high], b.icmp_signed(">", b.sub(high, low), I32(1))

        one = 0x3F800000
        return b.bitcast(k.do_while([I32(0), I32(one)], halve)[0], F32)

    def _key(self) -> Value:
        b = self.k.b
        seed, offset = (self.k.load(self.block, I64, 8 * i, 8) for i in (SEED, OFFSET))
        return b.xor(self._mixed(b.add(seed, I64(_GOLDEN))), b.mul(offset, I64(_MIX1 | 1)))

    def _mixed(self, z: Value) -> Value:
        b = self.k.b
        z = b.mul(b.xor(z, b.lshr(z, I64(30))), I64(_MIX1))
        z = b.mul(b.xor(z, b.lshr(z, I64(27))), I64(_MIX2))
        return b.xor(z, b.lshr(z, I64(31)))

    def _uniform(self, key: Value, i: Value) -> Value:
        """float64 in [0, 1), 53 bits."""
        b = self.k.b
        z = self._mixed(b.add(key, b.mul(b.add(i, I64(1)), I64(_GOLDEN))))
        return b.fmul(b.uitofp(b.lshr(z, I64(11)), F64), ir.Constant(F64, 2.0**-53))

    def _pick(self, floor: Value, mass: Value, u: Value) -> tuple[Value, Value, Value]:
        """(rest, token, weight) where the cumulated weights above `floor` pass u * mass; chunk masses are those `_heavier` left."""
        k, b = self.k, self.k.b
        none = ir.Constant(F64, 0.0)

        def chunk(c: Value, values: list[Value]) -> list[Value]:
            at, rest, before = values  # the chunk so far, what is left of the target inside it, what is left after c - 1 chunks
            inside = k.load(k.index(self.sums, c, 8), F64, 0, 8)
            reached = b.and_(b.fcmp_ordered(">", inside, none), b.fcmp_ordered(">=", before, none))
            at, rest = b.select(reached, c, at), b.select(reached, before, rest)
            return [at, rest, b.fsub(before, inside)]

        target = b.fmul(u, mass)
        at, rest, _ = k.loop(self.chunks, [k.i64(0), target, target], chunk)
        first = b.mul(at, k.i64(self.chunk))

        def element(j: Value, values: list[Value]) -> list[Value]:
            token, weight, left = values
            i = b.add(first, j)
            x = k.load(k.index(self.weights, i, 4), F32)
            above = b.fcmp_ordered(">", x, floor)
            reached = b.and_(above, b.fcmp_ordered(">=", left, none))
            token, weight = b.select(reached, i, token), b.select(reached, x, weight)
            return [token, weight, b.fsub(left, b.fpext(b.select(above, x, ir.Constant(F32, 0.0)), F64))]

        token, weight, left = k.loop(k.i64(self.chunk), [k.i64(0), ir.Constant(F32, 1.0), rest], element)
        return left, token, weight


def discard(_: object) -> None:
    """For a callback whose result is not wanted."""
