# SPDX-License-Identifier: Apache-2.0
"""Memory of every kind that is written, dropped, moved, split, replaced and forked while it moves (mutator.c)."""
import pytest

import moving
from test_incremental import Mutator

# So slow that a good part of the changes happens while memory follows.
WAYS = {"copied-before": (), "post-copy": ("--post-copy", "--bandwidth", "32M", "--compress", "none")}


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("way", WAYS)
def test_there_and_back(directory, way, seed):
    with moving.pair() as pair:
        mutator = Mutator(pair.hosts[0], directory, seed)
        for here in (0, 1, 0, 1):
            pair.move(mutator.pid, here, *WAYS[way])
            mutator.check(pair.hosts[1 - here])
            mutator.check(pair.hosts[1 - here])
            pair.hosts[here].wait_empty()
