"""``asyncapi``: the wire contract, for people and for code generators."""

from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli.options import Queue, err


def asyncapi(
    folder: Annotated[
        Path | None, typer.Option(help="Write asyncapi.json and the JSON Schemas to this folder.")
    ] = None,
    queue: Queue = None,
) -> None:
    """Print the wire contract as an AsyncAPI 3 document (JSON)."""
    from worker.contract.asyncapi import asyncapi as document
    from worker.contract.asyncapi import schemas
    from worker.settings import load_settings

    settings = load_settings(queue=queue)
    whole = document(settings.queue_names, settings.plain_messages)
    if folder is None:
        print(_json(whole), end="")
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "asyncapi.json": whole,
        **{f"{name}.schema.json": schema for name, schema in schemas().items()},
    }
    for name, content in files.items():
        (folder / name).write_text(_json(content))
        err.print(folder / name, highlight=False)


def _json(content: Any) -> str:
    from pydantic_core import to_json

    return to_json(content, indent=2).decode() + "\n"
