"""The mirror's belief: longest known prefix, whole pages, salted, bounded."""

from headway.fleet.mirror import PrefixMirror

PROMPT = list(range(100))


def believed(mirror, tokens, salt=""):
    return mirror.cached_tokens(mirror.chain(tokens, salt), len(tokens))


def test_whole_pages_of_a_common_prefix_count_and_one_token_is_always_left():
    mirror = PrefixMirror(16, 100)
    assert believed(mirror, PROMPT) == 0
    mirror.admit(mirror.chain(PROMPT, ""))
    assert believed(mirror, PROMPT) == 96
    assert believed(mirror, [*PROMPT[:40], 7, 7]) == 32
    assert believed(mirror, PROMPT[:96]) == 80
    assert believed(mirror, [9, *PROMPT]) == 0
    assert believed(mirror, PROMPT, "other tenant") == 0


def test_the_least_recent_chain_goes_first_from_its_tail():
    mirror = PrefixMirror(16, 8)
    mirror.admit(mirror.chain(PROMPT[:64], ""))
    mirror.admit(mirror.chain(list(range(200, 300)), ""))
    assert len(mirror) == 8 and believed(mirror, PROMPT) == 32
    mirror.drop(1)
    assert believed(mirror, PROMPT) == 16
    mirror.drop(1000)
    assert len(mirror) == 0
