"""The JSON Schema of an endpoint's spec, as a person may write it: for editors and pipelines.

It is made from the documents' types; `endpoint.schema.json` beside this file is a copy for who
has only the repository.  Lint knows more: rules over several values are in no schema.  Write the
copy anew with ``python -m registry_sync.endpoint_schema > registry_sync/endpoint.schema.json``.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from registry_sync.documents import EndpointSpec


def _schema() -> dict[str, Any]:
    schema = msgspec.json.schema(EndpointSpec)
    for definition in schema["$defs"].values():
        del definition["title"]  # the class's name: nothing to a person
        definition["description"] = " ".join(definition["description"].split())
        if "properties" in definition:
            definition["additionalProperties"] = False  # writers refuse fields they do not know
            if not definition["required"]:
                del definition["required"]
    # A person may leave the quotes out, see `parse_spec`.
    version = schema["$defs"]["Variant"]["properties"]["version"]
    version.update(type=["string", "integer"], minimum=1)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A Tidepool endpoint",
        **schema,
    }


SCHEMA: Final = _schema()

if __name__ == "__main__":
    print(json.dumps(SCHEMA, indent=2))
