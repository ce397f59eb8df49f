"""Griffe extension: the API page shows the choices of an option, not their type's name."""

from __future__ import annotations

from typing import Any

import griffe


class Choices(griffe.Extension):
    """Replaces the names of `methods.py`'s types by what they stand for."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        methods = pkg["methods"]
        types = {  # an import is an alias and has no value
            name: member.value
            for name, member in methods.members.items()
            if not member.is_alias and member.is_attribute and str(member.value).startswith("Literal[")
        }
        for function in _functions(pkg):
            for parameter in function.parameters:
                parameter.annotation = types.get(str(parameter.annotation), parameter.annotation)


def _functions(owner: griffe.Object | griffe.Alias) -> list[griffe.Function]:
    found = []
    for member in owner.members.values():
        if member.is_alias:
            continue
        if member.is_function:
            found.append(member)
        elif member.is_module or member.is_class:
            found += _functions(member)
    return found
