"""What the sampler does with a whole vocabulary, compiled: each kernel does the operations of engine/sampling/, in their order, hence has their bits.

    logits (float32 [n], or float64 once a stage has made them so) ──► scores = (logit - greatest) / divisor ──► weights = exp(scores)

Everything goes through blocks of 256 candidates that stay in the first-level cache, so no array of scores is ever made. Two ideas make it fast:

**A running sum in any order.** Adding w >= 0 to a sum s with 2**e <= s < 2**(e+1) rounds w to a multiple of u = 2**(e-52), unless the sum leaves this
interval; and but for ties (w halfway between two multiples, which then depends on s) it doesn't matter what s is. So within a block, s + w0 + w1 + … one
after the other is s + round(w0) + round(w1) + …, a sum of integers, in which order is of no account. A block with a tie or a carry is added up one by one.

**Where a sorted sum ends, without sorting** (`cut`). Histograms of weights over the keys, finer and finer, find the candidate with which the sum reaches
its target. Their sums are added in another order, hence differ in their last bits; if that could matter, the caller is told to sort.
"""
from __future__ import annotations

from .compile_cache import compiled
from .deferred import jit
from .simd import f64_bits, f64_from_bits, load_f32, load_i64, stack_vectors, store_f32, store_i64
from .simd64 import (
    at_most,
    at_most_i64,
    bits_of_f64x8,
    equal,
    equal_i64,
    f64x8_from_bits,
    i64_from,
    less,
    load_f32x8_as_f64,
    load_f64,
    load_f64x8,
    load_i64x8,
    or_i64,
    shl_i64,
    splat_f64,
    splat_i64,
    store_f64,
    store_f64x8,
    store_i64x8,
    store_packed_f64,
    store_packed_f64_as_f32,
    store_packed_i64,
    sum_i64,
    where_less,
)

BLOCK = 256
MAGIC = 6755399441055744.0
MAGIC_BITS = 0x4338000000000000
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
P0, P1, P2, P3 = 1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05, -1.65339022054652515390e-06
P4 = 4.13813679705723846039e-08
ONE_BINADE = 1 << 52
SMALLEST, LARGEST = 64 << 52, 2000 << 52  # bits of sums that `_add` may add to in any order
BUCKETS = 1024
FEW = 48  # candidates that are sorted by insertion
FAR = -1e300  # fills the last vector of scores: its weight is 0


@jit
def _exp(x):
    """e**x of f64x8, x <= 0, and 0 below -700: engine/sampling/arithmetic.py's, operation by operation."""
    lowest, zero = splat_f64(-700.0), splat_f64(0.0)
    clamped = where_less(lowest, x, x, lowest)
    shifted = clamped * splat_f64(1.44269504088896338700) + splat_f64(MAGIC)
    n_ln2 = shifted - splat_f64(MAGIC)
    high = clamped - n_ln2 * splat_f64(LN2_HIGH)
    low = n_ln2 * splat_f64(LN2_LOW)
    r = high - low
    t = r * r
    c = r - t * (splat_f64(P0) + t * (splat_f64(P1) + t * (splat_f64(P2) + t * (splat_f64(P3) + t * splat_f64(P4)))))
    y = splat_f64(1.0) - ((low - (r * c) / (splat_f64(2.0) - c)) - high)
    scale = f64x8_from_bits(shl_i64(bits_of_f64x8(shifted) - splat_i64(MAGIC_BITS - 1023), 52))
    return where_less(x, lowest, zero, y * scale)


@jit
def _scores(x, doubles, first, m, greatest, divisor, out):
    """(x - greatest) / divisor of m <= BLOCK logits from number `first` on, as float64; FAR up to the next multiple of 8. doubles: 0 if x is float32."""
    top = splat_f64(greatest)
    whole = m // 8 * 8
    if doubles:
        for i in range(0, whole, 8):
            store_f64x8(out + 8 * i, load_f64x8(x + 8 * (first + i)) - top)
        for i in range(whole, m):
            store_f64(out + 8 * i, load_f64(x + 8 * (first + i)) - greatest)
    else:
        for i in range(0, whole, 8):
            store_f64x8(out + 8 * i, load_f32x8_as_f64(x + 4 * (first + i)) - top)
        for i in range(whole, m):
            store_f64(out + 8 * i, load_f32(x + 4 * (first + i)) - greatest)
    for i in range(m, (m + 7) // 8 * 8):
        store_f64(out + 8 * i, FAR)
    if divisor != 1.0:
        for i in range(0, m, 8):
            store_f64x8(out + 8 * i, load_f64x8(out + 8 * i) / splat_f64(divisor))


@jit
def _add(values, m, total):
    """`total` plus m <= BLOCK float64 >= 0, as if added one after the other (this module's docstring says why)."""
    bits = f64_bits(total)
    base_bits = bits & -ONE_BINADE
    if m == BLOCK and SMALLEST < bits < LARGEST:
        base, base_integers = splat_f64(f64_from_bits(base_bits)), splat_i64(base_bits)
        half, minus_half = splat_f64(f64_from_bits(base_bits - 53 * ONE_BINADE)), splat_f64(-f64_from_bits(base_bits - 53 * ONE_BINADE))
        steps, bad = splat_i64(0), splat_i64(0)
        for i in range(0, 8 * BLOCK, 64):
            w = load_f64x8(values + i)
            rounded = w + base
            rest = w - (rounded - base)
            steps = steps + (bits_of_f64x8(rounded) - base_integers)
            bad = bad | equal(rest, half) | equal(rest, minus_half) | at_most(base, w)
        after = bits + sum_i64(steps)
        if or_i64(bad) == 0 and after < base_bits + ONE_BINADE:
            return f64_from_bits(after)
    for i in range(m):
        total = total + load_f64(values + 8 * i)
    return total


@jit
def _keys(x, doubles, first, m, greatest, divisor, log_whole, entropy, out):
    """`_scores`, made into how far their surprise, log_whole - score, is from the entropy. With 0 and 0: minus the scores."""
    sign = splat_i64(-1 - (-1 << 63))  # all bits but the sign
    _scores(x, doubles, first, m, greatest, divisor, out)
    for i in range(0, 8 * m, 64):
        far = (splat_f64(log_whole) - load_f64x8(out + i)) - splat_f64(entropy)
        store_f64x8(out + i, f64x8_from_bits(bits_of_f64x8(far) & sign))


@compiled("int64(int64, int64, int64)")
def exp(x, out, n):
    """out[i] = e**x[i] of float64 [n] at these addresses, x <= 0; 0 below -700. They may be the same. out: room for n rounded up to 8."""
    buffer = stack_vectors(32)
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        store_f64x8(out + 8 * i, _exp(load_f64x8(x + 8 * i)))
    if whole < n:
        _scores(x, 1, whole, n - whole, 0.0, 1.0, buffer)
        store_f64x8(out + 8 * whole, _exp(load_f64x8(buffer)))
    return 0


@compiled("float64(int64, int64, int64, float64, float64, int64, int64)")
def weigh(x, doubles, n, greatest, divisor, weights, sums):
    """The sum of exp(scores). weights: where to put them, float64 [n rounded up to 8], or 0; sums: float64, the running sum after each block."""
    buffer = stack_vectors(32)
    total = 0.0
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        _scores(x, doubles, first, m, greatest, divisor, buffer)
        out = weights + 8 * first if weights != 0 else buffer
        for i in range(0, 8 * m, 64):
            store_f64x8(out + i, _exp(load_f64x8(buffer + i)))
        total = _add(out, m, total)
        store_f64(sums + first // BLOCK * 8, total)
    return total


def _running_sum(name, term):
    """(x, doubles, n, greatest, divisor, a, b) -> the running sum of term(scores, number of the first, a, b), 8 scores at a time."""
    def kernel(x, doubles, n, greatest, divisor, a, b):
        buffer = stack_vectors(32)
        total = 0.0
        for first in range(0, n, BLOCK):
            m = min(BLOCK, n - first)
            _scores(x, doubles, first, m, greatest, divisor, buffer)
            for i in range(0, m, 8):
                store_f64x8(buffer + 8 * i, term(load_f64x8(buffer + 8 * i), first + i, a, b))
            total = _add(buffer, m, total)
        return total
    kernel.__name__ = kernel.__qualname__ = name
    return compiled("float64(int64, int64, int64, float64, float64, int64, float64)")(kernel)


@jit
def _surprise(scores, first, weights, log_whole):
    return load_f64x8(weights + 8 * first) * (splat_f64(log_whole) - scores)


@jit
def _power(scores, first, power, mean):
    off = scores - splat_f64(mean)
    return off * off if power == 2 else splat_f64(0.0) - scores


weighted_surprise = _running_sum("weighted_surprise", _surprise)
"""(x, doubles, n, greatest, divisor, weights, log_whole): of weight * (log_whole - score); weights as `weigh` left them."""
moment = _running_sum("moment", _power)
"""(x, doubles, n, greatest, divisor, power, mean): of (score - mean)**2 with power 2; of -score with power 1."""


@compiled("int64(int64, int64, int64, float64, float64, float64, float64, float64, int64, int64, int64, int64)")
def collect(x, doubles, n, greatest, divisor, log_whole, entropy, limit, last, ids, kept_x, kept_ids):
    """How many candidates have a key (`_keys`) below `limit`, or equal to it at a place up to `last`. Their logits go to kept_x, their ids, int64, to
    kept_ids: those at address `ids`, or their places if that is 0. Room for n each."""
    buffer = stack_vectors(32)
    count = 0
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        _keys(x, doubles, first, m, greatest, divisor, log_whole, entropy, buffer)
        whole = m // 8 * 8
        for group in range(0, whole, 8):
            key, place = load_f64x8(buffer + 8 * group), i64_from(first + group)
            near = at_most(key, splat_f64(limit))
            if or_i64(near) == 0:
                continue
            near = near & (at_most_i64(place, splat_i64(last)) | less(key, splat_f64(limit)))
            if doubles:
                store_packed_f64(kept_x + 8 * count, load_f64x8(x + 8 * (first + group)), near)
            else:
                store_packed_f64_as_f32(kept_x + 4 * count, load_f32x8_as_f64(x + 4 * (first + group)), near)
            if ids != 0:
                place = load_i64x8(ids + 8 * (first + group))
            count += store_packed_i64(kept_ids + 8 * count, place, near)
        for i in range(whole, m):
            at, far = first + i, load_f64(buffer + 8 * i)
            store_i64(kept_ids + 8 * count, load_i64(ids + 8 * at) if ids != 0 else at)
            if doubles:
                store_f64(kept_x + 8 * count, load_f64(x + 8 * at))
            else:
                store_f32(kept_x + 4 * count, load_f32(x + 4 * at))
            count += 1 if (far < limit) | ((far == limit) & (at <= last)) else 0
    return count


@jit
def _places(keys, m, low, scale, out):
    """The bucket of each key, int64: never less for a greater key."""
    last = splat_f64(BUCKETS - 1.0)
    for i in range(0, 8 * m, 64):
        place = (load_f64x8(keys + i) - splat_f64(low)) * splat_f64(scale)
        store_i64x8(out + i, bits_of_f64x8(where_less(place, last, place, last) + splat_f64(MAGIC)) - splat_i64(MAGIC_BITS))


@jit
def _near_ones(x, doubles, n, greatest, divisor, log_whole, entropy, farthest, keys, ids):
    """How many candidates have keys up to `farthest`; these keys, float64, and their places, int64."""
    buffer = stack_vectors(32)
    count = 0
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        _keys(x, doubles, first, m, greatest, divisor, log_whole, entropy, buffer)
        for i in range(0, m, 8):
            key, place = load_f64x8(buffer + 8 * i), i64_from(first + i)
            near = at_most(key, splat_f64(farthest)) & at_most_i64(place, splat_i64(n - 1))
            if or_i64(near) != 0:
                store_packed_f64(keys + 8 * count, key, near)
                count += store_packed_i64(ids + 8 * count, place, near)
    return count


@compiled("int64(int64, int64, int64, float64, float64, int64, float64, float64, float64, float64, float64, int64, int64)")
def cut(x, doubles, n, greatest, divisor, weights, log_whole, entropy, target, margin, farthest, room, found):
    """Candidates by ascending key (`_keys`), equal ones by place: found[0] (float64) and found[1] (int64) are key and place of the first with which the
    sum of weights reaches `target`. 1; or 0 if the sum comes as near as `margin` to it before or after. Those with keys beyond `farthest` are known not to
    be needed. room: 16 (n + 8) bytes."""
    histogram, places = stack_vectors(256), stack_vectors(32)
    low, scale, before, ids = 0.0, 32.0, 0.0, room + 8 * (n + 8)
    count = _near_ones(x, doubles, n, greatest, divisor, log_whole, entropy, farthest, room, ids)
    for _ in range(12):
        for i in range(0, 16 * BUCKETS, 64):
            store_f64x8(histogram + i, splat_f64(0.0))
        for first in range(0, count, BLOCK):
            m = min(BLOCK, count - first)
            _places(room + 8 * first, m, low, scale, places)
            for i in range(m):
                slot = histogram + 16 * load_i64(places + 8 * i) + 8 * (i & 1)  # two of each: neighbours seldom wait for one another
                store_f64(slot, load_f64(slot) + load_f64(weights + 8 * load_i64(ids + 8 * (first + i))))
        bucket = 0
        while bucket < BUCKETS:
            after = before + (load_f64(histogram + 16 * bucket) + load_f64(histogram + 16 * bucket + 8))
            if after >= target:
                break
            before = after
            bucket += 1
        if bucket == BUCKETS:
            return 0
        kept, least, most = 0, 1e308, 0.0
        for first in range(0, count, BLOCK):
            m = min(BLOCK, count - first)
            _places(room + 8 * first, m, low, scale, places)
            for i in range(0, m, 8):
                here = equal_i64(load_i64x8(places + 8 * i), splat_i64(bucket)) & at_most_i64(i64_from(i + 1), splat_i64(m))
                if or_i64(here) != 0:
                    store_packed_f64(room + 8 * kept, load_f64x8(room + 8 * (first + i)), here)
                    kept += store_packed_i64(ids + 8 * kept, load_i64x8(ids + 8 * (first + i)), here)
        for i in range(kept):
            key = load_f64(room + 8 * i)
            least, most = min(least, key), max(most, key)
        count = kept
        if count <= FEW or least == most:
            break
        if most - least < 1e-290:
            return 0
        low, scale = least, (BUCKETS - 1.0) / (most - least)
    else:
        return 0
    if least != most:
        for i in range(1, count):
            key, at, j = load_f64(room + 8 * i), load_i64(ids + 8 * i), i
            while j > 0 and load_f64(room + 8 * (j - 1)) > key:
                store_f64(room + 8 * j, load_f64(room + 8 * (j - 1)))
                store_i64(ids + 8 * j, load_i64(ids + 8 * (j - 1)))
                j -= 1
            store_f64(room + 8 * j, key)
            store_i64(ids + 8 * j, at)
    for i in range(count):
        at = load_i64(ids + 8 * i)
        after = before + load_f64(weights + 8 * at)
        if after >= target:
            store_f64(found, load_f64(room + 8 * i))
            store_i64(found + 8, at)
            return 1 if before < target - margin and after >= target + margin else 0
        before = after
    return 0
