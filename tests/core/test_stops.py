"""Stop strings: found across pieces, nothing of them shown, nothing else held back longer than needed."""

from hypothesis import given
from hypothesis import strategies as st

from headway.core.stops import StopMatcher

LETTERS = st.text(alphabet="abA", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Oracle: the stop that is complete first wins; of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_equal_to_a_search_of_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(tuple(stops))
    shown = "".join(matcher.push(piece) for piece in pieces)
    if not matcher.stopped:
        shown += matcher.flush()
    assert (shown, matcher.stopped) == expected("".join(pieces), stops)


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_holds_only_what_may_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(tuple(stops))
    seen = shown = ""
    for piece in pieces:
        seen += piece
        shown += matcher.push(piece)
        if matcher.stopped:
            break
        held = seen[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_false_start_is_released_at_once() -> None:
    matcher = StopMatcher(("END",))
    assert [matcher.push(piece) for piece in ("a E", "N", "d", " END", "x")] == ["a ", "", "ENd", " ", ""]
