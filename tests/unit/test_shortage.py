"""What a machine is short of passes, whoever meets it."""

import errno
import tarfile

import pytest

from lfm.shortage import in_words, passes, shortage
from lfm_worker.shell.prepare import cause_of
from lfm_worker.shell.unpack import UnpackFailed

FULL = [OSError(errno.ENOSPC, "no space"), OSError(errno.EDQUOT, "quota")]
SHORT = [MemoryError(), *(OSError(number, "") for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN))]
OTHER = [OSError(errno.EACCES, "no"), OSError("no number"), FileNotFoundError(errno.ENOENT, ""), ValueError()]


def unpacking(error: BaseException, code: int = UnpackFailed.FAILED) -> UnpackFailed:
    failed = UnpackFailed("it failed", code)
    failed.__cause__ = error
    return failed


@pytest.mark.parametrize("error", FULL + SHORT + OTHER, ids=repr)
def test_it_is_the_same_everywhere(error: Exception) -> None:
    what = "full" if error in FULL else "short" if error in SHORT else ""
    assert shortage(error) == what and passes(error) == bool(what)
    assert cause_of(error) == cause_of(unpacking(error)) == cause_of(unpacking(error, UnpackFailed.UNUSABLE)) == (what or "other")


def test_what_unpacking_says_itself_goes_first() -> None:
    assert cause_of(unpacking(MemoryError(), UnpackFailed.CORRUPT)) == "corrupt"
    assert cause_of(UnpackFailed("full", UnpackFailed.FULL)) == "full"
    assert cause_of(tarfile.TarError()) == "corrupt"


def test_each_has_words() -> None:
    assert in_words(OSError(errno.ENOSPC, "No space left")) == "No space left" and in_words(MemoryError()) == "not enough memory"
