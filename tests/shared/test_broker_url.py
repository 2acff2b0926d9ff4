"""INKWELL_BROKER_URL: several nodes, and errors that are reported at start."""

import pytest

from shared.broker_url import BrokerUrl
from tests.support.programs import assert_refused, run


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://one", [("one", 5672)]),
        ("amqps://u:p@one/", [("one", 5671)]),
        ("amqp://u:p@one,two:5673/notes?name=x", [("one", 5672), ("two", 5673)]),
        ("amqps://u:p@one:1,[::1]:2,[::2]/", [("one", 1), ("::1", 2), ("::2", 5671)]),
    ],
)
def test_nodes_are_read_with_their_ports(url: str, hosts: list[tuple[str, int]]) -> None:
    assert list(BrokerUrl.parse(url).hosts) == hosts


def test_url_of_one_node_keeps_all_the_rest() -> None:
    url = BrokerUrl.parse("amqps://us%40er:p%2Fw@one,[::1]:2/v%2Fhost?cafile=/ca.pem")

    assert (url.user, url.vhost) == ("us@er", "v/host")
    assert str(url.url_of("::1", 2)) == "amqps://us%40er:p%2Fw@[::1]:2/v%2Fhost?cafile=/ca.pem"
    assert url.url_of("one", 5671).password == "p/w"


@pytest.mark.parametrize(
    ("text", "vhost"),
    [
        ("amqp://u:p@one,two:5673/?hints_vhost=inkwell-hints", "inkwell-hints"),
        ("amqps://u:p@one/notes?cafile=/ca.pem&hints_vhost=a%2Fb", "a/b"),
        ("amqp://one?hints_vhost=/", "/"),
        ("amqp://u:p@one/notes", "notes"),
        ("amqp://u:p@one/notes?hints_vhost=", "notes"),
    ],
)
def test_hints_have_the_virtual_host_of_the_parameter_and_else_that_of_the_url(text: str, vhost: str) -> None:
    url = BrokerUrl.parse(text)
    hints = url.for_hints()

    assert (hints.vhost, hints.for_hints().vhost) == (vhost, vhost)
    assert (hints.user, hints.hosts) == (url.user, url.hosts)
    assert hints.url_of("one", 1).query.get("cafile") == url.url_of("one", 1).query.get("cafile")


def test_user_and_virtual_host_are_the_libraries_where_the_url_has_none() -> None:
    url = BrokerUrl.parse("amqp://one")

    assert (url.user, url.vhost) == ("guest", "/")


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "http://u:hunter2@one/",
        "amqp://",
        "amqp://u:hunter2@",
        "amqp://u:hunter2@one,/",
        "amqp://u:hunter2@,one/",
        "amqp://u:hunter2@one:hunter2/",
        "amqp://u:hunter2@one:70000/",
        "amqp://u:hunter2@one:0,two/",
        "amqp://u:hunter2@[::1/",
        "amqp://u:hunter2@::1/",
        "amqp://u:hunter2/@one/",
        "amqp://u:hunter2#@one/",
        "amqp://u:hunter2%@one/",
        "amqp://u:hunter2@one/%zz",
        "amqp://u:p@one/?hunter2=x",
        "amqp://u:p@one one/",
    ],
)
def test_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        BrokerUrl.parse(url)

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("program", "url", "message"),
    [
        (("gateway",), "amqp://u:hunter2-hunter2@one,two:70000/", "port"),
        (("worker",), "amqp://u:hunter2-hunter2@one,/", "lacks a host"),
        (("worker", "dead-letters", "list"), "amqp://u:hunter2-hunter2@one/?cafle=/x", "did you mean cafile?"),
    ],
)
def test_program_ends_where_the_url_is_wrong_and_names_the_setting(
    program: tuple[str, ...], url: str, message: str
) -> None:
    assert_refused(run(*program, INKWELL_BROKER_URL=url), "INKWELL_BROKER_URL", message)
