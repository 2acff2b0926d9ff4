"""The docstrings of body members agree with their descriptions in the OpenAPI document."""

import ast
from collections.abc import Iterator
from itertools import chain, pairwise

from dev.backend import ROOT
from gateway.app import create_app
from gateway.settings import GatewaySettings

MODELS = (*ROOT.glob("gateway/**/*.py"), *ROOT.glob("shared/contracts/*.py"))


def documented_members(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """The class, the name and the docstring of each documented member of a model."""
    for model in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for member, following in pairwise(model.body):
            match member, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                    yield model.name, name, docstring
                case _:
                    pass


def test_docstrings_of_members_are_their_descriptions_in_the_document(password_settings: GatewaySettings) -> None:
    schemas = create_app(password_settings).openapi()["components"]["schemas"]
    described = {
        (model, name, schemas[model]["properties"][name].get("description"), docstring)
        for model, name, docstring in chain.from_iterable(documented_members(ast.parse(p.read_text())) for p in MODELS)
        if name in schemas.get(model, {}).get("properties", ())
    }

    assert len(described) > 5
    assert [each for each in described if each[2] != each[3]] == []
