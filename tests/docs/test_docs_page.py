"""The interactive documentation in a real browser with access to the gateway only."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import httpx

from tests.support.accounts import sign_up
from tests.support.canaries import PASSWORD

if TYPE_CHECKING:
    from playwright.async_api import ConsoleMessage, Page, Response


@dataclass
class Reader:
    """A reader of the interactive documentation."""

    page: "Page"
    requested: list[str] = field(default_factory=list)
    """The URLs that the page has requested."""
    complaints: list[str] = field(default_factory=list)
    """The warnings and errors on the browser's console, including violations of the page's policy."""

    @classmethod
    async def at(cls, page: "Page", url: str) -> Self:
        """Opens the documentation and waits until it is rendered."""
        reader = cls(page)
        page.on("request", lambda request: reader.requested.append(request.url))
        page.on("console", reader.listen)
        page.on("pageerror", lambda error: reader.complaints.append(str(error)))
        await page.goto(f"{url}/docs")
        await page.locator("#operations-notes-listNotes").wait_for()
        return reader

    def listen(self, message: "ConsoleMessage") -> None:
        if message.type in {"warning", "error"}:
            self.complaints.append(message.text)

    async def try_out(self, operation: str) -> "Response":
        """Sends the operation's example request from the page; returns the gateway's response."""
        block = self.page.locator(f"#operations-{operation}")
        await block.locator(".opblock-summary-control").click()
        await block.get_by_role("button", name="Try it out").click()
        async with self.page.expect_response(is_of_the_api) as answered:
            await block.get_by_role("button", name="Execute").click()
        await block.locator(".live-responses-table .response-col_status").first.wait_for()
        return await answered.value

    async def sign_in(self, name: str, password: str) -> None:
        """Signs in with the Authorize button, with every scope."""
        await self.page.get_by_role("button", name="Authorize").first.click()
        form = self.page.locator(".auth-container").filter(has_text="OAuth2")
        await form.locator("input[data-name=username]").or_(form.locator("#oauth_username")).first.fill(name)
        await form.locator("input[type=password]").first.fill(password)
        await form.get_by_text("select all", exact=True).click()
        await form.locator("button.authorize").click()
        await form.get_by_text("Logout").wait_for()
        await self.page.get_by_role("button", name="Close").first.click()


def is_of_the_api(response: "Response") -> bool:
    return "/docs" not in response.url and "/openapi.json" not in response.url


async def test_page_loads_and_tries_out_without_leaving_its_origin(page: "Page", client: httpx.AsyncClient) -> None:
    origin = str(client.base_url).rstrip("/")
    created = await client.post("/notes", json={"title": "Ink", "description": "Buy a bottle"})
    reader = await Reader.at(page, origin)

    response = await reader.try_out("notes-listNotes")

    assert response.status == 200
    assert await response.json() == [created.json()]
    assert "Buy a bottle" in await page.locator(".live-responses-table").inner_text()
    assert [url for url in reader.requested if not url.startswith((f"{origin}/", "data:"))] == []
    assert reader.complaints == []


async def test_authorize_button_signs_in(page: "Page", users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(users_client, "Ada")
    created = await users_client.post("/notes", json={"title": "Ink", "description": ""}, headers=ada.headers)
    reader = await Reader.at(page, str(users_client.base_url).rstrip("/"))

    await reader.sign_in("Ada", PASSWORD)
    response = await reader.try_out("notes-listNotes")

    assert (response.status, await response.json()) == (200, [created.json()])
    assert reader.complaints == []
