"""Sizes as people write them. One parser reads every option that takes a size."""

from __future__ import annotations

import pytest

from tourkit.units import GIB, MIB, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("8GiB", 8 * GIB), ("8 gib", 8 * GIB), ("1.5GB", 1_500_000_000), ("500MB", 500_000_000), ("64KiB", 65536)),
        *(("8G", 8 * GIB), ("512m", 512 * MIB), (" 20GiB ", 20 * GIB), ("0", 0), ("0GiB", 0)),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "8", "GiB", "-8GiB", "8GiB free", "8TiB", "much"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="20GiB"):
        parse_size(text)
