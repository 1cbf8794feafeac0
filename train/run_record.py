"""run.json: what a run is, who runs it, and how far it was when it last said so.

The log of the run may be further; `run_status` puts both together.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dinov2kit.errors import ArgumentError, check_choice
from dinov2kit.files import written_whole

SCHEMA = "dinokit.run/1"
STATES = ("running", "stopped", "finished", "failed")
FACTS = (
    *("created", "updated"),  # ISO 8601; when the run began, and when this was written
    *("state", "error"),  # one of `STATES`; why it failed, or None
    *(
        "step",
        "steps",
        "batch",
        "at_once",
    ),  # done, of the whole run; images in one, and on all devices at once
    *(
        "model",
        "images",
        "digest",
    ),  # name of the backbone; how many images to learn from, digest of their list
    *(
        "host",
        "pid",
        "world",
        "device",
        "precision",
        "machine",
        "version",
        "torch",
    ),  # who runs it, and on what
)

_FILE = "run.json"


def write_record(run: Path, **changes: Any) -> dict[str, Any]:
    """Change what run.json says, or begin it; it appears whole.

    Args:
        run: folder of the run.
        changes: facts by name, see `FACTS`; the others stay as they are. `created` and `updated` are added.

    Returns: all facts that are known now.

    Raises:
        ArgumentError: there is no such fact or state, what is there cannot be read, or the folder cannot be
            written.
    """
    for name in changes:
        check_choice("fact of a run", name, FACTS)
    if "state" in changes:
        check_choice("state of a run", changes["state"], STATES)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = read_record(run) if (run / _FILE).exists() else {"created": now, "state": "running", "step": 0}
    known = {**before, "updated": now, **changes}
    facts = {name: known[name] for name in FACTS if name in known}
    with written_whole(run / _FILE) as temporary:
        temporary.write_text(json.dumps({"schema": SCHEMA, **facts}, indent=2) + "\n", "utf-8")
    return facts


def read_record(run: Path) -> dict[str, Any]:
    """Read run.json: `created`, `updated`, `state`, `step`, and what else of `FACTS` is known.

    Raises:
        ArgumentError: there is none, it is damaged, or of another schema.
    """
    path = run / _FILE
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ArgumentError(
            f"{run} is no run: it has no {_FILE}", hint="see which there are: dinokit runs list"
        ) from error
    except OSError as error:
        raise ArgumentError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ArgumentError(f"{path} is damaged: {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ArgumentError(f"{path} has the schema {schema!r}; wanted {SCHEMA!r}")
    facts = {name: found[name] for name in FACTS if name in found}
    wanted = {"created": str, "updated": str, "state": str, "step": int}
    if wrong := [name for name, kind in wanted.items() if not isinstance(facts.get(name), kind)]:
        raise ArgumentError(f"{path} is damaged: {wrong[0]} is {facts.get(wrong[0])!r}")
    check_choice(f"state in {path}", facts["state"], STATES)
    return facts
