"""What is said to a person of environments that are made, and when.  (How it looks: tests/process/test_client_terminal.py.)"""

import math

import pytest

from lfm import progress
from lfm.progress import EnvironmentNews, picture
from lfm.protocol.messages import EnvironmentProgress
from lfm.terminal import Terminal


class Screen(Terminal):
    """Shows bars, or does not, and keeps all that it is given."""

    def __init__(self, bars: bool) -> None:
        super().__init__()
        self.bars, self.drawn, self.said = bars, [], []

    width = 79
    plain = True

    def draw(self, line: str) -> bool:
        if self.bars:
            self.drawn.append(line)
        return self.bars

    def say(self, line: str) -> None:
        self.said.append(line)


def told(stage, done=0, total=0, text="", key="key"):
    return EnvironmentProgress(key, "numpy (+1)", stage, done, total, text)


@pytest.fixture
def screen():
    return Screen(bars=True)


@pytest.fixture
def news(screen):
    return EnvironmentNews(screen)


def test_one_line_stays(news, screen):
    for stage in ("build", "build", "pack", "verify", "ready"):
        news.hear(told(stage))
    assert len(screen.said) == 1 and "numpy (+1): ready after" in screen.said[0]


def test_what_is_there_soon_is_not_drawn(news, screen):
    news.hear(told("build"))
    begun = news.deadline() - progress.FROM
    news.look(begun + progress.FROM / 2)
    assert not screen.drawn
    news.look(begun + progress.FROM)
    assert len(screen.drawn) == 1 and news.deadline() == begun + progress.FROM + progress.FRAME
    news.hear(told("ready"))
    news.look(math.inf)
    assert len(screen.drawn) == 1 and news.deadline() == math.inf


def test_one_that_was_there_is_no_news(news, screen):
    news.hear(told("ready"))
    news.hear(told("unpacked"))
    assert screen.said == [] and news.deadline() == math.inf


def test_where_nothing_can_be_drawn_a_line_now_and_then(monkeypatch):
    screen = Screen(bars=False)
    news = EnvironmentNews(screen)
    news.hear(told("pack", 3, 10))
    begun = news.deadline() - progress.FROM
    for seconds in range(1, 25):
        news.look(begun + seconds)
    assert [line.split(":")[-1] for line in screen.said] == [" packing, 30%, 10 s", " packing, 30%, 20 s"]


def test_several_at_once_are_one_line(news, screen):
    news.hear(told("build", 1, 4))
    news.hear(told("build", 2, 4, key="other"))
    news.look(news.deadline() + 1)
    assert "numpy (+1) (and 1 more): building" in screen.drawn[-1] and "25%" in screen.drawn[-1]


def test_what_is_sent_from_here(news, screen):
    news.hear(told("upload", 0, 1000))
    news.look(news.deadline() + 1)
    assert "sending to the manager" in screen.drawn[-1] and "%" not in screen.drawn[-1]  # perhaps by another client
    news.sent("key", 500)
    news.sent("key", 400)  # a piece once more
    news.look(news.deadline() + 1)
    assert "50% of 1.0 kB" in screen.drawn[-1]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (told("build", 1, 4, "scipy 1.17"), "lfm: numpy (+1): building scipy 1.17 ########------------------------  25%, 5 s"),
        (told("verify", 0, 1), "lfm: numpy (+1): verifying 5 s"),
        (told("send", 1, 2, "sent to 1 worker"), "lfm: numpy (+1): sending to 1 worker ############-------------  50% of 2 B, 5 s"),
        (told("unpack", 9, 9, "unpacked on 3 workers"), "lfm: numpy (+1): unpacking on 3 workers ###################### 100% of 9 B, 5 s"),
        (told("sung", 0, 0), "lfm: numpy (+1): sung 5 s"),
    ],
)
def test_the_line(screen, said, shown):
    line = picture(said, 5.4, 0, screen)
    assert line == shown and len(line) <= screen.width


def test_a_narrow_screen(screen):
    screen.width = 20
    assert picture(told("pack", 5, 10), 5, 0, screen) == "lfm: numpy (+1): pac"


def test_nothing_is_printed_where_nobody_watches(capsys):
    news = EnvironmentNews()
    news.hear(told("build"))
    news.look(news.deadline() + 2 * progress.EVERY)
    news.hear(told("ready"))
    assert capsys.readouterr().err == ""
