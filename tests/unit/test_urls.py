"""The broker's URL, or a list of them for a cluster, as a user writes it."""

import pytest

from worker.urls.broker import check_urls, split_urls

FIRST, SECOND = "amqp://user:a,b@one:5672/vhost", "amqps://two/%2F?cafile=/ca,1.pem"


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (FIRST, [FIRST]),
        (f"{FIRST},{SECOND}", [FIRST, SECOND]),
        (f" {FIRST} ,\n {SECOND} ", [FIRST, SECOND]),
        (f"{SECOND},{FIRST},{SECOND}", [SECOND, FIRST, SECOND]),
    ],
)
def test_commas_stand_between_urls_and_in_passwords(urls: str, expected: list[str]) -> None:
    assert split_urls(urls) == expected
    assert check_urls(urls) == urls


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ("", "must be a URL"),
        ("amqp://", "must be a URL"),
        (f"{FIRST},http://hunter2@host", "%40"),
        ("http://hunter2@host", "must be a URL"),
        (f"{FIRST},amqp://host:port/", "can't be read"),
        ("amqp://host:0/", "port"),
        ("amqp://user:hunter2/x@host/", "%2F"),
        (f"{FIRST},amqp://user:hunter2#x@host/", "%23"),
    ],
)
def test_each_url_of_a_list_is_checked_and_none_is_shown(urls: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        check_urls(urls)
    assert "hunter2" not in str(raised.value)
