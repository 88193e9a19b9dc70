from schemas.liveness import Stall


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
