"""The commands of the runbook, run on a stack under Compose."""

import re

import pytest

from dev.backend import ROOT
from tests.support.harness import eventually
from tests.system.deployment import Deployment

RUNBOOK = (ROOT / "docs/operations.md").read_text()
LOOK = re.findall(r"```bash\n(.*?)```", RUNBOOK.partition("### InkwellUnreadableMessages\n")[2], re.DOTALL)[0]
PUBLISH = """docker compose exec -T gateway python - <<'END'
import asyncio, os, aio_pika
async def publish():
    async with await aio_pika.connect(os.environ["INKWELL_BROKER_URL"]) as connection:
        exchange = await (await connection.channel()).get_exchange("inkwell.commands.v1", ensure=False)
        await exchange.publish(aio_pika.Message(b"nonsense"), "inkwell.commands.v1.0")
asyncio.run(publish())
END"""

pytestmark = [pytest.mark.needs_docker, pytest.mark.long]


async def test_unreadable_messages_are_shown_and_stay(deployment: Deployment) -> None:
    await deployment.run(PUBLISH)

    async def shown() -> bool:
        return "nonsense" in await deployment.run(LOOK.replace(" exec ", " exec -T "))

    assert await eventually(shown, within_seconds=30)
    assert await shown()
