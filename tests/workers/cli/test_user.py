from rich.console import Console

from schemas.messages import Recommendation, ScoredItem
from workers.cli.user import _recommendation, bound, lists
from workers.home.titles import Titles


def recommendation(shown: list[str], reference: list[str]) -> Recommendation:
    return Recommendation(
        user_id="u", items=[ScoredItem(item_id=item, score=-1.0) for item in shown], reference=reference,
        source="items", reason="event", lagrange=None, kl=0, epsilon=0, knowledge_version=0, knowledge_age_s=None,
        knowledge_behind=None, model_version="m", event_time=0, count=1, caused_at=0, requested_at=0, ranked_at=0)


def printed(shown: list[str], reference: list[str], titles: dict[str, str]) -> list[str]:
    console = Console(width=120, color_system=None)
    with console.capture() as out:
        console.print(lists(recommendation(shown, reference), Titles(titles)))
    return [line.rstrip() for line in out.get().splitlines()]


def test_lists_stand_side_by_side_with_titles_and_what_is_new_is_marked() -> None:
    found = printed(["50", "7"], ["7", "100", "9"], {"50": "Star Wars (1977)", "7": "Toy Story (1995)"})
    assert [line.split() for line in found] == [
        ["shown", "behaviour", "alone"],
        ["1", "+", "Star", "Wars", "(1977)", "[50]", "Toy", "Story", "(1995)", "[7]"],
        ["2", "Toy", "Story", "(1995)", "[7]", "100"],
        ["3", "9"]]


def test_ids_and_titles_of_others_are_text_alone() -> None:
    found = "\n".join(printed(["[/bold]", "a\x1b[31mb"], ["c"], {"c": "[red]Tomato[/red]"}))
    assert "[/bold]" in found
    assert "\x1b" not in found
    assert "[red]Tomato[/red]" in found


def test_the_trust_radius_is_a_bound_on_likelihood_outside_a_small_set() -> None:
    assert bound(0.0) == "trust radius 0: the list of behaviour alone"
    assert bound(0.05).endswith("by more than 0.05 nats")
    assert bound(0.13).endswith("by more than 0.1 nats, outside a set of items with a probability of 0.03")


def test_a_list_of_what_is_popular_says_so_and_names_the_rules() -> None:
    last = recommendation(["50"], ["50"]).model_copy(update={
        "source": "popular", "fallback": "no_history", "reason": "seen", "rules": ["deny=adult", "most=kind"]})
    console = Console(width=160, color_system=None)
    with console.capture() as out:
        _recommendation(console, last, Titles({}), 10.0)
    assert "because the user is here, includes 1 events; what others take now (no_history)" in out.get()
    assert "changed by rules of the shop: deny=adult, most=kind" in out.get()
