"""The URL of a deployment and a token for it, from the environment or from a file that only its user can read."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from inkwell_client.errors import ClientError

OWNER_ONLY = 0o600


@dataclass(frozen=True)
class Credentials:
    """A deployment, and a token for it."""

    url: str
    token: str | None
    """None for a deployment without users."""


def load() -> Credentials:
    """Return the credentials from INKWELL_URL and INKWELL_TOKEN, or those that `login` has saved.

    The saved token is sent to no other URL than its own. Raises ClientError if there are none.
    """
    saved = _load_saved()
    url = os.environ.get("INKWELL_URL", saved.url if saved else "").rstrip("/")
    if not url:
        raise ClientError("not signed in: run `inkwell login URL`, or set INKWELL_URL and INKWELL_TOKEN")
    own_token = saved.token if saved and saved.url == url else None
    return Credentials(url, os.environ.get("INKWELL_TOKEN") or own_token)


def save(credentials: Credentials) -> Path:
    """Save the credentials for later runs, and return the file."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "w") as file:
        json.dump(asdict(credentials), file)
    return draft.replace(path)


def _load_saved() -> Credentials | None:
    try:
        return Credentials(**json.loads(_path().read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ClientError(f"{_path()} cannot be read ({error}): run `inkwell login URL` again") from None


def _path() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "inkwell" / "credentials.json"
