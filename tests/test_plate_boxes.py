"""What a box of pixels wants of each shard."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from etl.source.plate_boxes import plan_parts


@pytest.mark.parametrize("seed", range(40))
def test_parts_cover_a_box_once_and_name_the_chunks_that_they_need(seed: int) -> None:
    rng = np.random.default_rng([3, seed])
    chunks = rng.integers(1, 4, 3)
    shards, shape = chunks * rng.integers(1, 4, 3), rng.integers(1, 12, 3)
    low = rng.integers(0, shape)
    high = rng.integers(low + 1, shape + 1)
    box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    times = np.zeros(shape, int)
    for part in plan_parts(shape.tolist(), shards.tolist(), chunks.tolist(), box):
        times[part.box] += 1
        every, wanted = set(), set()
        for pixel in product(*map(range, shape)):  # slow, and plain
            place = np.array(pixel)
            if tuple(place // shards) == part.place:
                number = int(np.ravel_multi_index(tuple(place % shards // chunks), tuple(shards // chunks)))
                every.add(number)
                if ((low <= place) & (place < high)).all():
                    wanted.add(number)
        assert sorted(wanted) == sorted(part.chunks.tolist())
        assert part.is_all == (wanted == every)
    assert (times[box] == 1).all()
    assert times.sum() == np.prod(high - low)
