"""How far an import has come: a small file that is only moved forward over what Kafka has acknowledged."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.importer.refusal import ImportRefusedError


@dataclass
class Checkpoint:
    """`delivered`: events, in the order in which they are sent, that need not be sent again."""

    file_bytes: int
    file_sha256: str
    rules_sha256: str  # of what decides which events the rows give: the mapping, what was given with it, and the policy
    topic: str
    sheet: str | None = None  # of a workbook, None: the first
    not_before_ms: int | None = None  # what the topic took when the import began, where rows are judged one by one
    not_after_ms: int | None = None
    delivered: int = 0
    complete: bool = False


def start_checkpoint(path: Path, rules: list[Any], topic: str, sheet: str | None) -> Checkpoint:
    """The checkpoint of an import that has not begun. `rules`: what decides which events the rows give. `sheet`: of a
    workbook, None for the first.

    `ImportRefusedError` if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(json.dumps(rules).encode()).hexdigest()
        return Checkpoint(path.stat().st_size, content, digest, topic, sheet)
    except OSError as error:
        raise ImportRefusedError(f"cannot read {path}: {error.strerror}") from error


def resume_checkpoint(state_path: Path, fresh: Checkpoint) -> Checkpoint:
    """Where an earlier run has stopped, or `fresh` if there was none; refused if it was about another file, mapping or
    topic.
    """
    try:
        saved = Checkpoint(**json.loads(state_path.read_text()))
    except FileNotFoundError:
        return fresh
    except (OSError, ValueError, TypeError) as error:
        raise ImportRefusedError(
            f"{state_path} is no state of an import ({error}); remove it, or start anew without resuming"
        ) from error
    for name, what in (
        ("file_bytes", "the size of the file has changed"),
        ("file_sha256", "the content of the file has changed"),
        (
            "sheet",
            f"another sheet is meant (it was {saved.sheet or 'the first'}): give each sheet a --state of its own",
        ),
        (
            "rules_sha256",
            "the mapping or the policy's platforms or actions have changed, or what is said with the mapping",
        ),
        ("topic", f"the topic has changed (it was {saved.topic})"),
    ):
        if getattr(saved, name) != getattr(fresh, name):
            raise ImportRefusedError(
                f"cannot resume from {state_path}: since it was written, {what}. Start anew without resuming: rows that were "
                "sent before keep their event_id if the mapping gives it, and are then counted once within dedup_window"
            )
    return saved


def save_checkpoint(state_path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the state file at once, so that a kill leaves the old one or the new one."""
    draft = state_path.with_name(f"{state_path.name}.new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(checkpoint)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(state_path)
    except OSError as error:
        raise ImportRefusedError(
            f"cannot write the state file {state_path}: {error.strerror}; give another path for it"
        ) from error
