from pathlib import Path

import orjson

from schemas.liveness import FailureLimit, Progress, Stall, counters_file, ready_file


class TestStall:
    def test_standing_still_with_work_is_a_stall_after_the_limit(self) -> None:
        stall = Stall(10.0)
        assert [stall.reached(now, "mark", True) for now in (0.0, 5.0, 9.9, 10.0)] == [False, False, False, True]

    def test_every_move_restarts_the_clock(self) -> None:
        stall = Stall(10.0)
        assert not any(stall.reached(now, now, True) for now in range(0, 100, 9))
        assert stall.reached(110.0, 99, True)

    def test_idle_time_does_not_count(self) -> None:
        stall = Stall(10.0)
        assert not any(stall.reached(now, "mark", False) for now in range(0, 100, 10))
        assert not stall.reached(99.0, "mark", True)
        assert stall.reached(100.0, "mark", True)  # ten seconds after it was last idle

    def test_work_that_comes_and_goes_starts_again_at_zero(self) -> None:
        stall = Stall(10.0)
        assert not stall.reached(0.0, "a", True)
        assert stall.reached(10.0, "a", True)
        assert not stall.reached(11.0, "b", True)
        assert not stall.reached(20.0, "b", False)
        assert not stall.reached(25.0, "b", True)
        assert stall.reached(30.0, "b", True)


class TestFailureLimit:
    def test_a_run_of_failures_is_the_roles_fault(self) -> None:
        limit = FailureLimit(run=3)
        assert [limit.failed() for _ in range(3)] == [None, None, None]
        limit.passed(1)
        assert [limit.failed() for _ in range(4)] == [None, None, None, "4 records in a row failed"]

    def test_so_is_a_large_share_without_a_run(self) -> None:
        limit, said = FailureLimit(run=3, share=0.1, window=100), []
        for _ in range(60):
            limit.passed(2)
            said.append(limit.failed())
        assert said.index("11 of the newest 33 records failed") == 10
        assert all(said[10:])

    def test_a_few_bad_records_among_many_are_buried_for_ever(self) -> None:
        limit = FailureLimit()
        for _ in range(5000):
            limit.passed(19)
            assert limit.failed() is None

    def test_a_broken_kind_of_records_is_found_after_a_long_good_time(self) -> None:
        limit, buried = FailureLimit(), 0
        limit.passed(10_000_000)
        while limit.failed() is None:
            buried += 1
            limit.passed(3)
        assert buried < 200

    def test_nothing_that_passed_ends_no_run(self) -> None:
        limit = FailureLimit(run=1)
        assert limit.failed() is None
        limit.passed(0)
        assert limit.failed() is not None


class TestProgress:
    def test_the_file_tells_what_was_done_since_the_start(self, tmp_path: Path) -> None:
        progress = Progress(tmp_path, "streams", lambda: {"duplicates": 2})
        progress.clear()
        progress.buried("unreadable", 3)
        progress.buried("future", reason="event_time: 9 s ahead of the clock")
        progress.produced(5)
        progress.in_hand(9)
        progress.done(9, 0.5)
        progress.write(7, force=True)
        said = orjson.loads(counters_file(tmp_path, "streams").read_bytes())
        assert said["dead_letters"] == 4
        assert said["dead_letters_by"] == {"unreadable": 3, "future": 1}
        assert (said["processed"], said["produced"], said["batches"], said["last_batch"]) == (9, 5, 1, 9)
        assert said["last_dead_letter"] == "event_time: 9 s ahead of the clock"
        assert said["started_at"] > said["beat"] >= said["moved"] > 0
        assert (said["lag"], said["duplicates"], said["role"]) == (7, 2, "streams")

    def test_the_ready_file_is_there_from_ready_to_end(self, tmp_path: Path) -> None:
        progress = Progress(tmp_path, "streams")
        progress.clear()
        assert not ready_file(tmp_path, "streams").exists()
        progress.ready()
        assert ready_file(tmp_path, "streams").exists()
        progress.end(clean=False)
        assert not ready_file(tmp_path, "streams").exists()
        assert orjson.loads(counters_file(tmp_path, "streams").read_bytes())["ended"] == "failed"

    def test_every_finished_thing_is_a_move(self, tmp_path: Path) -> None:
        progress, moves = Progress(tmp_path, "streams"), []
        for finished in (lambda: progress.buried("future", 9), lambda: progress.produced(9),
                         lambda: progress.done(9, 1.0), progress.moved):
            finished()
            moves.append(progress.moves)
        assert moves == [1, 2, 3, 4]

    def test_a_disk_that_takes_no_counters_ends_no_role(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_bytes(b"not a folder")
        Progress(tmp_path, "streams").write(0, force=True)

    def test_the_file_tells_since_when_work_stands_still(self, tmp_path: Path) -> None:
        progress = Progress(tmp_path, "ranking")

        def said(lag: int) -> tuple[float, float]:
            progress.write(lag, force=True)
            fields = orjson.loads(counters_file(tmp_path, "ranking").read_bytes())
            return fields["beat"], fields["moved"]

        idle, moved = said(0)
        assert moved == idle  # nothing waits: an hour of this is no standstill
        later, moved = said(5)
        assert idle == moved < later  # records wait, and nothing was finished since
        progress.produced(1)
        assert said(5)[1] > idle
        progress.in_hand(5)
        later, moved = said(0)
        assert moved < later  # a batch is in hand
        progress.done(5, 0.1)
        later, moved = said(0)
        assert moved == later

    def test_an_absent_broker_is_what_a_role_waits_for(self, tmp_path: Path) -> None:
        progress = Progress(tmp_path, "alignment")
        said = []
        progress.waits_for = "samples"
        for progress.broker_away in (True, False):
            progress.write(0, force=True)
            said.append(orjson.loads(counters_file(tmp_path, "alignment").read_bytes())["waits_for"])
        assert said == ["broker", "samples"]
