"""A table of fields as the schema of an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tourkit.server.api import limits
from tourkit.server.api.openapi.parts import NULL, Schema, described, record, values
from tourkit.server.api.route_fields import Field, Use


def table_schema(fields: tuple[Field, ...], read: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """Return the schema of an object with these fields. `read`: the schemas of those that are read.

    Raises KeyError for a field that is read and has no schema.
    """
    properties: dict[str, Any] = {}
    for field in fields:
        about = f"{field.use.value.capitalize()}."
        if field.use is Use.READ:
            properties[field.name] = read[field.name]
        elif field.use is Use.NO_EFFECT:
            properties[field.name] = described(about)
        else:
            properties[field.name] = values([*field.values, None], about=about)
    return record(properties, required, rest=NULL) | {"maxProperties": limits.FIELDS.most}
