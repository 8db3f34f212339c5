"""The numbers of pictures, and which of them a shard and a batch hold."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jdiff import checks

MOST = 2**32  # pictures: their numbers are folded into a key as 32 bits


class Batch(NamedTuple):
    """Pictures that are drawn in one call."""

    shard: int
    numbers: np.ndarray  # [size] uint32, padded by copies of the last one
    wanted: int  # numbers that are not padding


class Layout(NamedTuple):
    """The numbers of a job.

    Picture k belongs to prompt k // n and has the key fold_in(key(seed), k) in every shard and batch.

    Attributes:
        prompts: how many there are.
        n: pictures of each prompt.
        shard_size: pictures in a shard; the last one may have fewer.
    """

    prompts: int
    n: int
    shard_size: int

    @property
    def pictures(self) -> int:
        """All pictures."""
        return self.prompts * self.n

    @property
    def shards(self) -> int:
        """All shards."""
        return -(-self.pictures // self.shard_size)

    def numbers(self, shard: int) -> range:
        """Returns the numbers of a shard's pictures.

        Raises:
            ValueError: there is no such shard.

        Example:
            >>> Layout(prompts=5, n=3, shard_size=4).numbers(3)
            range(12, 15)
        """
        shard = checks.whole("shard", shard, 0, self.shards - 1)
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.pictures))

    def batches(self, shard: int, size: int) -> Iterator[Batch]:
        """Yields a shard's pictures in batches of one size, so that one compiled program draws all of them.

        Raises:
            ValueError: there is no such shard.

        Example:
            >>> [(batch.numbers.tolist(), batch.wanted) for batch in Layout(5, 1, 5).batches(0, 3)]
            [([0, 1, 2], 3), ([3, 4, 4], 2)]
        """
        numbers = self.numbers(shard)
        for first in range(numbers.start, numbers.stop, size):
            rows = np.minimum(np.arange(first, first + size), numbers.stop - 1)
            yield Batch(shard, rows.astype(np.uint32), min(size, numbers.stop - first))

    def mine(self, index: int, count: int) -> range:
        """Returns the shards of share `index` of `count`. Each shard is in exactly one share.

        Example:
            >>> [list(Layout(5, 1, 1).mine(index, 2)) for index in (0, 1)]
            [[0, 2, 4], [1, 3]]
        """
        return range(checks.whole("share", index, 0, count - 1), self.shards, count)


def layout(prompts: int, n: int, shard_size: int) -> Layout:
    """Checks the numbers of a job and returns them.

    Raises:
        ValueError: a number is out of range, or there are more than 2**32 pictures.

    Example:
        >>> layout(10, n=64, shard_size=1000)
        Layout(prompts=10, n=64, shard_size=1000)
    """
    n, shard_size = checks.whole("n", n), checks.whole("shard_size", shard_size, 1, 10**6)
    if prompts * n > MOST:
        raise ValueError(f"a folder holds at most {MOST} pictures, got {prompts} prompts x {n}; split the prompts")
    return Layout(prompts, n, shard_size)
