"""A server with several hosts, or a host with several addresses: one that hangs does not delay the others."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import Secret
from yarl import URL

from gateway.settings import GatewaySettings
from shared.addresses import Address, connect_to_any, resolve
from shared.broker import BROKER_ERRORS, SETUP_TIMEOUT_SECONDS, is_open, open_connection
from shared.broker_url import BrokerUrl
from shared.database import CONNECT_TIMEOUT_SECONDS, connect
from shared.database_url import DatabaseUrl
from tests.support.proxy import proxy_to

NAME = "two.test"
SILENT, ANSWERING = "127.0.0.2", "127.0.0.1"
CERTIFICATE = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
WRONG_PASSWORD = b"SFATAL\0VFATAL\0C28P01\0Mwrong password\0\0"


@pytest.fixture
def name_with_two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a host whose first address is the silent one."""
    resolve_really = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **named: Any) -> list[Any]:
        hosts = (SILENT, ANSWERING) if host == NAME else (host,)
        return [found for each in hosts for found in resolve_really(each, port, *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@asynccontextmanager
async def silent_server(port: int = 0) -> AsyncIterator[int]:
    """The port of a server that accepts connections and never answers."""
    ending = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ending.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, SILENT, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        ending.set()
        server.close()


async def connect_to_postgres(url: str) -> None:
    """Connects as the services do and sends a query."""
    session = await connect(Secret(DatabaseUrl.parse(url)), "test")
    assert await session.fetchval("select current_user") == "inkwell_gateway"
    await session.close()


async def connect_to_broker(url: str) -> None:
    """Connects as the services do and sends a request."""
    async with open_connection(Secret(BrokerUrl.parse(url)), "test") as connection:
        await connection.channel()
        assert is_open(connection)


@pytest.mark.usefixtures("name_with_two_addresses")
async def test_postgres_is_found_at_the_other_address_of_a_name_if_one_hangs(gateway_settings: GatewaySettings) -> None:
    url = URL(str(gateway_settings.database_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 0) as proxy, silent_server(proxy.port):
        for _ in range(3):  # in any order
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await connect_to_postgres(str(url.with_host(NAME).with_port(proxy.port)))


@pytest.mark.usefixtures("name_with_two_addresses")
async def test_broker_is_found_at_the_other_address_of_a_name_if_one_hangs(gateway_settings: GatewaySettings) -> None:
    url = URL(str(gateway_settings.broker_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 0) as proxy, silent_server(proxy.port):
        for _ in range(3):
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                await connect_to_broker(str(url.with_host(NAME).with_port(proxy.port)))


async def test_broker_is_found_at_another_host_if_the_first_one_hangs(gateway_settings: GatewaySettings) -> None:
    url = URL(str(gateway_settings.broker_url.get_secret_value()))
    async with silent_server() as port:
        hosts = f"{SILENT}:{port},{url.host}:{url.port}"
        for _ in range(3):
            async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
                await connect_to_broker(f"amqp://{url.user}:{url.password}@{hosts}/")


@pytest.mark.usefixtures("name_with_two_addresses")
async def test_address_that_hung_is_tried_last() -> None:
    async with silent_server() as port, proxy_to(ANSWERING, port) as _:
        assert {address.ip for address in await resolve([(NAME, port)], 1)} == {SILENT, ANSWERING}
        with pytest.raises(TimeoutError):
            await connect_to_any([(SILENT, port)], never_answered, (OSError,), 0.1, 0.1)

        orders = [[address.ip for address in await resolve([(NAME, port)], 1)] for _ in range(20)]

    assert orders == [[ANSWERING, SILENT]] * 20


@pytest.mark.usefixtures("name_with_two_addresses")
async def test_addresses_of_a_name_are_tried_in_any_order() -> None:
    orders = {(await resolve([(NAME, 9)], 1))[0].ip for _ in range(50)}

    assert orders == {SILENT, ANSWERING}


async def test_address_whose_caller_had_less_time_is_tried_last_too() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await connect_to_any([("127.0.0.3", 9)], never_answered, (OSError,), 5)

    addresses = await resolve([("127.0.0.3", 9), ("127.0.0.4", 9)], 1)
    assert [address.ip for address in addresses] == ["127.0.0.4", "127.0.0.3"]


async def never_answered(_: Address, __: float) -> None:
    await asyncio.sleep(60)


async def test_host_that_cannot_be_resolved_is_left_out() -> None:
    addresses = await resolve([("nowhere.invalid", 1), (ANSWERING, 2)], 5)

    assert [(address.ip, address.port) for address in addresses] == [(ANSWERING, 2)]
    with pytest.raises(socket.gaierror):
        await resolve([("nowhere.invalid", 1)], 5)


async def test_host_whose_name_is_resolved_too_slowly_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_really = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **named: Any) -> list[Any]:
        if host == NAME:
            time.sleep(0.5)
        return resolve_really(ANSWERING, port, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    assert [each.host for each in await resolve([(NAME, 5432), ("other.test", 5432)], 0.1)] == ["other.test"]


async def test_time_that_is_left_goes_to_the_later_addresses() -> None:
    shares: list[float] = []

    async def refuse(_: Address, seconds: float) -> None:
        shares.append(seconds)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        await connect_to_any([(f"127.0.1.{host}", 9) for host in (1, 2, 3)], refuse, (OSError,), 6)

    assert [round(share) for share in shares] == [2, 3, 6]


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, ssl.SSLContext], Awaitable[None]]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for the name, with its key in the same file."""
    key, signed = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
    subprocess.run([*CERTIFICATE, *names, "-keyout", str(key), "-out", str(signed)], check=True, capture_output=True)
    signed.write_text(signed.read_text() + key.read_text())
    return signed


@asynccontextmanager
async def tls_server(certificate: Path, serve: Serve) -> AsyncIterator[int]:
    """The port of a server with the certificate at the answering address; the other address refuses connections."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):  # the client may have closed the connection
            await serve(reader, writer, context)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, ANSWERING, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def refuse_a_password(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLContext) -> None:
    """Postgres' reply to a wrong password, over TLS."""
    await reader.readexactly(8)
    writer.write(b"S")
    await writer.start_tls(tls)
    await reader.read(1)
    writer.write(b"E" + (len(WRONG_PASSWORD) + 4).to_bytes(4, "big") + WRONG_PASSWORD)


@pytest.mark.usefixtures("name_with_two_addresses")
async def test_certificate_is_expected_to_be_that_of_the_name(certificate: Path) -> None:
    async with tls_server(certificate, refuse_a_password) as port:
        parameters = f"sslmode=verify-full&sslrootcert={certificate}"
        url = Secret(DatabaseUrl.parse(f"postgresql://u:p@{NAME}:{port}/notes?{parameters}"))
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connect(url, "test")

        other = Secret(DatabaseUrl.parse(f"postgresql://u:p@localhost:{port}/notes?{parameters}"))
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(other, "test")


@pytest.mark.usefixtures("name_with_two_addresses")
@pytest.mark.parametrize(("host", "greeting"), [(NAME, [b"AMQP"]), ("localhost", [])])
async def test_certificate_of_the_broker_is_expected_to_be_that_of_the_name(
    certificate: Path, host: str, greeting: list[bytes]
) -> None:
    received: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLContext) -> None:
        await writer.start_tls(tls)
        received.append(await reader.readexactly(4))

    async with tls_server(certificate, listen) as port:
        url = Secret(BrokerUrl.parse(f"amqps://u:p@{host}:{port}/?cafile={certificate}"))
        with pytest.raises(BROKER_ERRORS):
            async with open_connection(url, "test"):
                pass

    assert received == greeting
