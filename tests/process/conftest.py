from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from managers import Cluster, provide_environment


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A manager to be started, with an environment that it need not build."""
    provide_environment(tmp_path / "cache" / "environments")
    made = Cluster(tmp_path)
    yield made
    made.close()
