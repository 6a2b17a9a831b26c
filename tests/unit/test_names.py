"""Names that the worker gives to runs."""

from worker.runs.creation import _LEFT_OUT, _words, random_name


def test_a_name_has_two_of_coolnames_words() -> None:
    firsts, seconds = (set(words) for words in _words())
    names = [random_name().split("-") for _ in range(5000)]
    assert all(first in firsts and second in seconds and first != second for first, second in names)
    assert not (firsts | seconds) & _LEFT_OUT
    assert len(firsts) > 300
    assert len(seconds) > 300
    assert len({tuple(name) for name in names}) > 4500
