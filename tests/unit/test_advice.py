"""What a user is offered to copy kills no call for a megabyte."""

from __future__ import annotations

import pytest

from lfm_manager.core.advice import options_line
from lfm_manager.core.categories import Category


@pytest.mark.parametrize(
    ("most", "line"),
    [
        (0, ""),
        (2_100_000, "options(memory='67MB', cores=1)"),
        (200_000_000, "options(memory='270MB', cores=1)"),
        (2_000_000_000, "options(memory='2.5GB', cores=1)"),
    ],
)
def test_a_limit_to_copy_leaves_room(most: int, line: str) -> None:
    assert options_line(Category("small", most_memory=most), 1.0) == line
