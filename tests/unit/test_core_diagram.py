"""The picture in manager/README.md is drawn from the table of edges."""

from __future__ import annotations

from pathlib import Path

from lfm_manager.core.diagram import diagram

README = Path(__file__).parents[2] / "manager" / "README.md"
BEGIN, END = "<!-- diagram: python -m lfm_manager.core.diagram -->\n", "\n<!-- end -->"


def test_the_picture_is_up_to_date() -> None:
    text = README.read_text()
    drawn = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert drawn == diagram(), "run: python -m lfm_manager.core.diagram, and put it into manager/README.md"
