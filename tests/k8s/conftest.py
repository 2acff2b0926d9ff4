"""The pods of the `dev` overlay, from the image of this source, shared by all tests of this folder."""

import asyncio
import subprocess
from collections.abc import AsyncIterator

import pytest

from dev.backend import ROOT
from tests.k8s.pods import IMAGE, Namespace


@pytest.fixture(scope="package")
async def namespace(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Namespace]:
    await asyncio.to_thread(subprocess.check_call, ["docker", "build", "--quiet", "--tag", IMAGE, str(ROOT)])
    namespace = Namespace("dev", tmp_path_factory.mktemp("pods"))
    async with namespace.running():
        yield namespace
