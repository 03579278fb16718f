"""Control groups as the kernel describes them: where ours are, and what a peak says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lfm.monitor import cgroup
from lfm.monitor.group import bounds

MB = 1 << 20
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("mountinfo", "groups", "expected"),
    [
        (
            V1,
            "4:memory:/slurm/uid_7/job_1\n1:cpu,cpuacct:/\n9:name=systemd:/\n0::/x\n",
            {"memory": "/sys/fs/cgroup/memory/slurm/uid_7/job_1", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "": "/sys/fs/cgroup/unified/x"},
        ),
        (V2, "0::/user.slice/user-7.slice/a.scope\n", {"": "/sys/fs/cgroup/user.slice/user-7.slice/a.scope"}),
        (V2.replace(" / ", " /docker/c1 "), "0::/docker/c1/inner\n", {"": "/sys/fs/cgroup/inner"}),
        (V2.replace(" / ", " /docker/c1 "), "0::/elsewhere\n", {"": "/sys/fs/cgroup"}),
        (V2, "0::/../..\n", {}),
        ("", "0::/\n", {}),
    ],
)  # fmt: skip
def test_our_own_groups_are_found(mountinfo: str, groups: str, expected: dict[str, str]) -> None:
    assert expected.items() <= cgroup.own(mountinfo, groups).items()
    assert bool(expected) == bool(cgroup.own(mountinfo, groups))


def test_version_2_makes_groups_only_where_memory_is_shared_out(tmp_path: Path) -> None:
    leaf = tmp_path / "service" / "leaf"
    leaf.mkdir(parents=True)
    (leaf / "cgroup.subtree_control").write_text("")
    (leaf.parent / "cgroup.subtree_control").write_text("cpu pids\n")
    assert cgroup.candidates({"": str(leaf)}) == []
    (leaf.parent / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (place,) = cgroup.candidates({"": str(leaf)})
    assert (place.version, place.memory, place.cpu) == (2, str(leaf.parent), str(leaf.parent))
    assert [one.version for one in cgroup.candidates({"": str(leaf), "memory": "/m", "cpuacct": "/c"})] == [1, 2]


@pytest.mark.parametrize(
    ("peak", "base", "cache", "expected"),
    [
        (110 * MB, 10 * MB, 0, (100 * MB, 100 * MB)),
        (110 * MB, 10 * MB, MB // 2, (100 * MB, 100 * MB)),
        (110 * MB, 10 * MB, 40 * MB, (60 * MB, 100 * MB)),
        (110 * MB, 10 * MB, 400 * MB, (0, 100 * MB)),
        (5 * MB, 10 * MB, 0, (0, 0)),
    ],
)
def test_a_peak_is_exact_where_few_files_were_cached(peak: int, base: int, cache: int, expected: tuple[int, int]) -> None:
    assert bounds(peak, base, cache) == expected


def test_only_the_groups_of_dead_daemons_are_swept(tmp_path: Path) -> None:
    gone, ours = cgroup.PREFIX + "999999999.1", f"{cgroup.PREFIX}{os.getpid()}.1"
    for name in (gone, ours, "somebodys"):
        (tmp_path / name).mkdir()
    (tmp_path / (gone + ".full") / "below").mkdir(parents=True)
    place = cgroup.Place(1, str(tmp_path), "")
    cgroup.sweep_dead(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([gone + ".full", ours, "somebodys"])
    cgroup.sweep(place, f"{cgroup.PREFIX}{os.getpid()}.")
    assert not (tmp_path / ours).exists() and (tmp_path / "somebodys").exists()


def test_a_group_with_others_in_it_is_not_divided() -> None:
    """This process is not alone in its group, or the group cannot be divided at all: nothing moves."""
    before = cgroup.read("/proc/self/cgroup")
    undo = cgroup.divide()
    if cgroup.read("/proc/self/cgroup") != before:  # alone after all, and allowed to
        undo()
    assert cgroup.read("/proc/self/cgroup") == before
