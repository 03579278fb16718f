"""How people write amounts."""

import pytest

from lfm.protocol.resources import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4_000_000_000), ("4GiB", 4 << 30), ("1.5 MB", 1_500_000), ("512", 512), (0, 0), (7.9, 7),
        ("2k", 2000), ("3 KiB", 3072), ("10b", 10),
    ],
)
def test_sizes(text: str | float, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 iB", "-1", "1e9", "4XB", -1, True])
def test_what_is_no_size_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400.0), ("90s", 90.0), ("90", 90.0), ("2d", 172800.0), ("1.5h", 5400.0), (3, 3.0), ("5min", 300.0)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-5s", "1x", False, -2.0])
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_formats() -> None:
    assert [format_size(n) for n in (0, 999, 1500, 31_400_000, 999_700_000, 128e9, 5e15)] == [
        "0 B", "999 B", "1.5 kB", "31.4 MB", "1.0 GB", "128 GB", "5000 TB",
    ]
    assert [format_duration(s) for s in (0.35, 4.2, 200, 7500, 200_000)] == [
        "350 ms", "4.2 s", "3m 20s", "2h 05m", "2d 07h",
    ]
