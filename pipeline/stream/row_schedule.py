"""Which set of a mixture each row comes from: the rows of every set lie at even distances.

Let a set have the share s of all rows. Its row k (from 0) has the time (k + 1/2) / s, and the rows of all sets come in
the order of these times, those at the same time in the order of the sets. So the set of row t is a pure function of
(weights, t), and so is the number of rows of each set before it: nothing need be drawn again to begin at any row.

At time x a set has s x + e rows, |e| <= 1/2, and all sets together t = x + sum(e). So after t rows a set with the share
s, of n sets, is at most (1 - s) / 2 + s (n - 1) / 2 = (1 + s (n - 2)) / 2 rows from s t: half a row of two sets.
"""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Integers in the very proportions of these weights, each taken as the decimal number that it is written as."""
    exact = [Fraction(repr(weight)) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in exact))
    return [int(weight * common) for weight in exact]


class RowSchedule:
    """The set of every row, by its number.

    Args:
        weights: of the sets, integers above 0; of any size, the arithmetic is exact.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1:
            raise ValueError(f"weights {list(weights)} must be integers above 0")
        self._weights = list(weights)
        self._total = sum(weights)
        # The time of row k, (2 k + 1) total / (2 weight), in a unit in which all times are integers.
        common = math.lcm(*weights)
        self._units = [common // weight for weight in weights]

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows come from each set."""
        # Until this time at most `rows` rows have come, as sum(e) <= n / 2, and at least rows - 3 n / 2.
        time = max(0, rows - len(self._weights))
        counts = [(2 * time * weight + self._total) // (2 * self._total) for weight in self._weights]
        for number in self._follow(counts, rows - sum(counts)):
            counts[number] += 1
        return counts

    def take(self, start: int, count: int) -> list[int]:
        """The sets, by their number, of rows [start, start + count)."""
        if len(self._weights) == 1:
            return [0] * count
        return self._follow(self.counts(start), count)

    def most_rows(self, count: int) -> list[int]:
        """How many of any `count` rows in a row come from each set, at most."""
        others = len(self._weights) - 2
        # Its distance from the share, at both ends.
        return [-(-(weight * count + self._total + weight * others) // self._total) for weight in self._weights]

    def _follow(self, counts: Sequence[int], count: int) -> list[int]:
        """The sets of the next `count` rows where so many rows of each set have come."""
        waiting = [((2 * done + 1) * unit, number) for number, (done, unit) in enumerate(zip(counts, self._units))]
        heapq.heapify(waiting)
        sets = []
        for _ in range(count):
            time, number = waiting[0]
            heapq.heapreplace(waiting, (time + 2 * self._units[number], number))
            sets.append(number)
        return sets
