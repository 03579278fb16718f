"""Random clusters in virtual time around the shipped cores: whoever dies, whenever, every call is answered once.

``make soak SEEDS=100000`` lives through more of them; one world again: ``LFM_SEED=17 pytest tests/sim/test_worlds.py``.
"""

from __future__ import annotations

import os

import pytest
from worlds.life import World

SEEDS = int(os.environ.get("LFM_SEEDS", "2000"))
PARTS = 10  # a test each
FOUND = [0, 1, 9, 27, 33, 53, 56, 59, 71, 205, 273, 282, 315, 429, 693, 731, 823, 876, 1445, 1909, 2889]  # seeds that once found something


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once(seed: int) -> None:
    World(seed).live()


@pytest.mark.timeout(600 + SEEDS)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_call_is_answered_exactly_once_whoever_dies_whenever(part: int) -> None:
    one = os.environ.get("LFM_SEED")
    seeds = range(part, SEEDS, PARTS) if one is None else [int(one)] if part == 0 else []
    for seed in seeds:
        try:
            World(seed).live()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: add it to FOUND\n{error}") from error


def test_the_same_seed_gives_the_same_world() -> None:
    for seed in range(5):
        first, second = World(seed).live(), World(seed).live()
        assert first.clock.digest == second.clock.digest
