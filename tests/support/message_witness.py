"""Compares what the services publish with docs/asyncapi.yaml: every message of a test run, in every process.

A process that tests start finds the folder of the schemas in its environment, and writes there what it objects to. What
a test itself publishes is not compared: it may be hostile. Nor are messages that a worker moves, which it did not make.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
CHILD = ROOT / "tests/support/child"
FOLDER = "MESSAGE_WITNESS"
"""The variable with the folder of the schemas and the objections."""
DOCUMENT = "asyncapi.json"
PREFIX = "inkwell."
ANY_PREFIX = "[a-z][a-z0-9-]*[.]"
SHOWN_ERRORS = 3
TRANSIENT = 1


class Published(NamedTuple):
    """A message on its way to the broker."""

    exchange: str
    key: str
    body: bytes
    properties: Any
    """Those of AMQP, of which pamqp has the class, or None."""
    mandatory: bool = False

    def get(self, name: str) -> Any:
        """A property, or None."""
        return getattr(self.properties, name, None)

    @property
    def binding(self) -> dict[str, Any]:
        """What an operation's binding for AMQP may say."""
        return {
            "deliveryMode": self.get("delivery_mode") or TRANSIENT,
            "mandatory": self.mandatory,
            "timestamp": self.get("timestamp") is not None,
        }

    @property
    def headers(self) -> dict[str, Any]:
        """The headers, of which `replyTo` is a property in AMQP."""
        reply_to = {"replyTo": self.get("reply_to")} if self.get("reply_to") else {}
        return {**(self.get("headers") or {}), **reply_to}


class Form:
    """A message that an operation may send."""

    def __init__(self, document: dict[str, Any], message: dict[str, Any]) -> None:
        self._content_type: str = message["contentType"]
        self._headers = _validator(document, message.get("headers", True))
        self._payload = _validator(document, message["payload"])

    def objections(self, message: Published) -> Iterator[str]:
        """What is wrong with a message of this form, without its content."""
        if message.get("content_type") not in (None, self._content_type):
            yield f"content type {message.get('content_type')}"
        try:
            is_json = self._content_type.endswith("json")
            payload = json.loads(message.body) if is_json else message.body.decode("latin-1")
        except ValueError:
            yield "no JSON"
            return
        for part, validator, value in (
            ("header", self._headers, message.headers),
            ("payload", self._payload, payload),
        ):
            if not validator.is_valid(value):
                for error in list(validator.iter_errors(value))[:SHOWN_ERRORS]:
                    yield "/".join(map(str, (part, *error.instance_path))) + f": {error.message}"


class Route:
    """Where an operation sends, and what."""

    def __init__(self, document: dict[str, Any], operation: dict[str, Any], binding: dict[str, Any]) -> None:
        channel = _find(document, operation["channel"])
        place, address = channel["bindings"]["amqp"], channel["address"]
        self._exchange = _pattern(place["exchange"]["name"] if "exchange" in place else "")
        self._key = _pattern(place["queue"]["name"], "[.].+") if address is None else _pattern(address)
        self._binding = binding
        self._forms = [Form(document, _find(document, _find(document, each))) for each in operation["messages"]]

    def leads_to(self, exchange: str, key: str) -> bool:
        """Whether a message with this routing key takes this route."""
        return bool(self._exchange.fullmatch(exchange) and self._key.fullmatch(key))

    def objections(self, message: Published) -> list[str]:
        """What is wrong with a message: nothing if one form fits."""
        found = [list(form.objections(message)) for form in self._forms]
        used = message.binding
        wrong = [f"{name} {used[name]}" for name in used if used[name] != self._binding.get(name, used[name])]
        return wrong + ([] if [] in found else found[0])


def routes(document: dict[str, Any]) -> dict[str, list[Route]]:
    """Where each service may publish, as its operations say."""
    found: dict[str, list[Route]] = {"gateway": [], "worker": []}
    for operation in document["operations"].values():
        service = operation["tags"][0]["name"]
        if operation["action"] == "send":
            found[service].append(Route(document, operation, operation["bindings"]["amqp"]))
        elif "reply" in operation:
            found[service].append(Route(document, operation["reply"], {}))
    return found


def objections(routes: list[Route], message: Published) -> list[str]:
    """What the document has against a message."""
    found = [route.objections(message) for route in routes if route.leads_to(message.exchange, message.key)]
    if not found:
        return ["the document has no operation that sends there"]
    return [] if [] in found else found[0]


def watch(channel: type[Any]) -> Callable[[], None]:
    """Compares whatever is published with the class, aiormq's channel, from now on; returns what undoes it."""
    publish = channel.basic_publish

    def compare_and_publish(self: Any, body: bytes, **options: Any) -> Any:
        if service := _service(sys._getframe(1)):
            place = options.get("exchange", ""), options.get("routing_key", "")
            _compare(service, Published(*place, body, options.get("properties"), options.get("mandatory", False)))
        return publish(self, body, **options)

    channel.basic_publish = compare_and_publish

    def undo() -> None:
        channel.basic_publish = publish

    return undo


def watch_when_imported() -> None:
    """Watches once aiormq is imported, which processes without a broker never do."""
    sys.meta_path.insert(0, Watching())


class Watching:
    """Finds the module of channels, as Python does, and watches the class that it defines."""

    def find_spec(self, name: str, path: Any, _: object = None) -> ModuleSpec | None:
        if name != "aiormq.channel":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        assert spec
        assert spec.loader
        execute = spec.loader.exec_module

        def execute_and_watch(module: ModuleType) -> None:
            execute(module)
            watch(module.Channel)

        spec.loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


def environment(folder: Path, document: dict[str, Any]) -> dict[str, str]:
    """The variables of processes that are to be watched; the folder gets the document."""
    (folder / DOCUMENT).write_text(json.dumps(document))
    inherited = os.environ.get("PYTHONPATH")
    return {FOLDER: str(folder), "PYTHONPATH": os.pathsep.join(filter(None, [str(CHILD), inherited]))}


def take_objections() -> list[str]:
    """What the processes have objected to since the last call."""
    folder, found = os.environ.get(FOLDER), list[str]()
    for file in Path(folder).iterdir() if folder else ():
        if file.name != DOCUMENT:
            found += file.read_text().splitlines()
            file.unlink()
    return found


def _compare(service: str, message: Published) -> None:
    """Writes the objections to a file of this process."""
    folder = Path(os.environ[FOLDER])
    for found in objections(_routes(folder)[service], message):
        with (folder / str(os.getpid())).open("a") as file:
            file.write(f"{service} published to {message.exchange!r} with {message.key!r}: {found}\n")


@cache
def _routes(folder: Path) -> dict[str, list[Route]]:
    return routes(json.loads((folder / DOCUMENT).read_text()))


def _service(frame: FrameType | None) -> str | None:
    """The service whose code publishes; None if a test does, another version, or a worker that moves messages."""
    while frame:
        top, _, rest = frame.f_code.co_filename.removeprefix(f"{ROOT}/").partition("/")
        if top in ("gateway", "worker"):
            return None if rest == "queues.py" else top
        if top == "tests":
            return None
        frame = frame.f_back
    return None


def _validator(document: dict[str, Any], schema: Any) -> Any:
    import jsonschema_rs  # noqa: PLC0415 - only processes that publish need it

    whole = {"allOf": [schema], "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True, mask="…")


def _find(document: dict[str, Any], reference: dict[str, str]) -> Any:
    """The part of the document that the reference leads to."""
    found = document
    for name in reference["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def _pattern(name: str, suffix: str = "") -> re.Pattern[str]:
    """The names that a name of the document stands for: those with any prefix and any numbers."""
    prefix = ANY_PREFIX if name.startswith(PREFIX) else ""
    text = re.sub(r"\\{\w+\\}", "[0-9]+", re.escape(name.removeprefix(PREFIX)))
    return re.compile(prefix + text + suffix)
