import errno
from pathlib import Path

import pytest

from schemas.endings import FULL_EXIT, SETUP_EXIT, WAITING_EXIT, note_error, one_line, read_error
from schemas.errors import ArtifactError, BrokerUnavailableError, FreshetError, SettingsError, StoreUnavailableError
from workers.supervision.ending import ending


@pytest.mark.parametrize(("error", "code", "waits_for"), [
    (BrokerUnavailableError("away"), WAITING_EXIT, "broker"),
    (StoreUnavailableError("away"), WAITING_EXIT, "store"),
    (ArtifactError("no model"), SETUP_EXIT, ""),
    (SettingsError("wrong"), SETUP_EXIT, ""),
    (FreshetError("refused"), 1, ""),
])
def test_errors_say_by_their_exit_code_whether_another_start_helps(
    error: Exception, code: int, waits_for: str, tmp_path: Path,
) -> None:
    end = ending(error, tmp_path)
    assert (end.code, end.waits_for, end.text, end.unexpected) == (code, waits_for, str(error), False)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_an_error_to_act_on(number: int, tmp_path: Path) -> None:
    end = ending(OSError(number, "No space left on device", str(tmp_path / "guard")), tmp_path)
    assert end.code == FULL_EXIT
    assert not end.unexpected
    assert "the disk is full" in end.text
    assert str(tmp_path) in end.text


def test_what_nobody_foresaw_keeps_its_traceback(tmp_path: Path) -> None:
    assert ending(KeyError("x"), tmp_path).unexpected
    assert ending(OSError(errno.EIO, "I/O error"), tmp_path).unexpected


def test_the_last_error_is_one_bounded_line_of_the_process_that_wrote_it(tmp_path: Path) -> None:
    import os

    note_error(tmp_path, "guard", "\n  first\nsecond", "broker")
    noted = read_error(tmp_path, "guard", os.getpid())
    assert noted is not None
    assert (noted.text, noted.waits_for) == ("first", "broker")
    assert read_error(tmp_path, "guard", os.getpid() + 1) is None
    assert read_error(tmp_path, "ranking", os.getpid()) is None
    assert len(one_line("x" * 10_000)) == 300
