import multiprocessing

import numpy as np

from models.language.state_log import KEY, StateLog


def append(path, start):
    log = StateLog(8, path)
    for at in range(start, start + 300):
        log.add({at.to_bytes(KEY, "big"): np.full(8, at, np.float16)})


def test_processes_write_concurrently(tmp_path):
    path = tmp_path / "states.f16"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=append, args=(path, start)) for start in (0, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = StateLog(8, path).read([at.to_bytes(KEY, "big") for at in range(500)])
    assert (found == np.arange(500)[:, None]).all()
    assert path.stat().st_size == 500 * (KEY + 16 + 4)  # no duplicates


def test_an_empty_log_has_no_keys(tmp_path):
    log = StateLog(8, tmp_path / "folder" / "states.f16")
    assert b"0" * KEY not in log
    assert log.read([]).shape == (0, 8)
    assert not log.refresh()
    log.add({})
    assert not (tmp_path / "folder" / "states.f16").exists()
