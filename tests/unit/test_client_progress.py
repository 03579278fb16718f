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


def test_its_way_to_workers(news, said, monkeypatch):
    news.hear(told("unpacked"))  # it did not take long
    assert said == []
    for stage, done, text in (("send", 10, "sent to 2 workers"), ("send", 20, "sent to 2 workers"), ("unpack", 30, "unpacked on 2 workers")):
        news.hear(EnvironmentProgress("key", "numpy (+1)", stage, done, 1000, text))
    assert said == ["environment with numpy (+1): being sent to 2 workers, 1 % of 1.0 kB"]
    monkeypatch.setattr(progress, "EVERY", 0.0)
    news.hear(EnvironmentProgress("key", "numpy (+1)", "unpack", 500, 1000, "unpacked on 2 workers"))
    news.hear(told("unpacked"))
    assert said[1].endswith("being unpacked on 2 workers, 50 % of 1.0 kB") and "on its workers after" in said[2]


def test_one_that_was_there_is_no_news(news, said):
    news.hear(told("ready"))
    assert said == []


def test_nothing_is_printed_where_nobody_watches(capsys):
    EnvironmentNews().hear(told("build"))
    assert capsys.readouterr().err == ""
