"""What a person sees of an environment that is being made."""

import pytest

from lfm import progress
from lfm.progress import EnvironmentNews
from lfm.protocol.messages import EnvironmentProgress


@pytest.fixture
def said():
    return []


@pytest.fixture
def news(said):
    return EnvironmentNews(said.append)


def told(stage, done=0, total=0):
    return EnvironmentProgress("key", "numpy (+1)", stage, done, total)


def test_beginning_and_end(news, said):
    for stage in ("build", "build", "pack", "verify", "ready"):
        news.hear(told(stage))
    assert len(said) == 2 and "numpy (+1) is made" in said[0] and "ready after" in said[1]


def test_a_long_one_says_how_far_it_is(news, said, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    news.hear(told("build"))
    news.hear(told("pack", 3, 10))
    assert "pack (3 of 10)" in said[-1]


def test_one_that_was_there_is_no_news(news, said):
    news.hear(told("ready"))
    assert said == []


def test_nothing_is_printed_where_nobody_watches(capsys):
    EnvironmentNews().hear(told("build"))
    assert capsys.readouterr().err == ""
