"""Who may do what: a route declares its rule as the `security` of its OpenAPI operation, and that is enforced."""

from dataclasses import dataclass

from fastapi import Request
from fastapi.routing import APIRoute

from gateway.dependencies import gateway_of
from gateway.errors import REALM, ProblemError
from gateway.openapi import Part
from shared.contracts import Scope


@dataclass(frozen=True, slots=True)
class Rule:
    """The scope that the caller's credentials must have; None lets everybody in."""

    scope: Scope | None = None
    is_applied_by_endpoint: bool = False
    """The endpoint lets some in without credentials, and applies the rule to the others."""

    async def admit(self, request: Request) -> None:
        """Finds out who calls; raises ProblemError 401 or 403, or DatabaseUnavailableError."""
        if self.scope is None:
            return
        authorization = request.headers.get("authorization")
        confirm = self.scope is not Scope.READ  # the SQL of a read sees for itself
        caller = await gateway_of(request).authentication.caller(authorization, confirm=confirm)
        if self.scope not in caller.scopes:
            raise insufficient_scope(self.scope)
        request.state.caller = caller

    @property
    def openapi(self) -> Part:
        """The security requirement; personal tokens never allow changes of the account."""
        anonymous: list[dict[str, list[str]]] = [{}] if self.is_applied_by_endpoint else []
        if self.scope is None:
            return {"security": []}
        schemes = ["password"] if self.scope is Scope.ACCOUNT else ["password", "personalToken"]
        return {"security": anonymous + [{scheme: [self.scope.value]} for scheme in schemes]}


OPEN = Rule()
MAY_READ = Rule(Scope.READ)
MAY_WRITE = Rule(Scope.WRITE)
MAY_POLL = Rule(Scope.WRITE, is_applied_by_endpoint=True)
OWN_ACCOUNT = Rule(Scope.ACCOUNT)
RULES = (OPEN, MAY_READ, MAY_WRITE, MAY_POLL, OWN_ACCOUNT)


def rule_of(route: APIRoute) -> Rule:
    """The rule that a route declares; raises TypeError where it declares none."""
    declared = (route.openapi_extra or {}).get("security")
    for rule in RULES:
        if rule.openapi["security"] == declared:
            return rule
    raise TypeError(f"{route.name} does not declare a rule")


def insufficient_scope(scope: Scope) -> ProblemError:
    """403 with the challenge that RFC 6750 demands."""
    challenge = {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'}
    return ProblemError(403, "insufficient_scope", f"The token lacks the scope {scope}", headers=challenge)
