"""The rights that deploy/kafka-acls.sh gives, as the script itself says them: it is run, with another kafka-acls command."""

import argparse
import os
import subprocess
from itertools import product
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "kafka-acls.sh"
_OPERATIONS = {each.name.replace("_", "").lower(): each for each in AclOperation}
_RESOURCES = {"topic": "TOPIC", "group": "GROUP", "transactional_id": "TRANSACTIONAL_ID"}


def least_privilege(environment: dict[str, str], folder: Path) -> list[AclBinding]:
    """What the script grants for the topics and groups of these ONECOUNT_* variables."""
    said, command = folder / "acls.tsv", folder / "kafka-acls"
    command.write_text(f"#!/bin/sh\nprintf '%s\\t' \"$@\" >> '{said}'\necho >> '{said}'\n")
    command.chmod(0o700)
    said.unlink(missing_ok=True)
    run_script(environment, str(command))
    return [binding for line in said.read_text().splitlines() for binding in _bindings(line.split("\t")[:-1])]


def run_script(environment: dict[str, str], kafka_acls: str) -> None:
    """Runs it for these ONECOUNT_* variables with a kafka-acls command."""
    subprocess.run([SCRIPT], env=os.environ | environment | {"KAFKA_ACLS": kafka_acls}, check=True)


def given(admin: AdminClient, name: str) -> list[AclBinding]:
    """All rights in the cluster on topics, groups and transactional ids of a deployment."""
    every = AclBindingFilter(
        *(ResourceType.ANY, None, ResourcePatternType.ANY, None, None),
        *(AclOperation.ANY, AclPermissionType.ANY),
    )
    return [each for each in admin.describe_acls(every).result(10) if each.name.startswith(f"{name}.")]


def _bindings(arguments: list[str]) -> list[AclBinding]:
    """One call of kafka-acls: each resource with each operation."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--operation", action="append", required=True)
    parser.add_argument("--resource-pattern-type", default="literal")
    for name in _RESOURCES:
        parser.add_argument(f"--{name.replace('_', '-')}", action="append", default=[])
    said = parser.parse_args(arguments)
    resources = [(ResourceType[kind], each) for name, kind in _RESOURCES.items() for each in getattr(said, name)]
    pattern = ResourcePatternType[said.resource_pattern_type.upper()]
    return [
        AclBinding(kind, name, pattern, said.allow_principal, "*", operation, AclPermissionType.ALLOW)
        for (kind, name), operation in product(resources, (_OPERATIONS[each.lower()] for each in said.operation))
    ]


def grant(admin: AdminClient, bindings: list[AclBinding]) -> None:
    """Adds rights, and returns when the broker has them."""
    for future in admin.create_acls(bindings).values():
        future.result(10)


def revoke(admin: AdminClient, binding: AclBinding) -> None:
    """Takes one right away."""
    one = AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )
    for future in admin.delete_acls([one]).values():
        assert len(future.result(10)) == 1, f"there was no such right: {binding}"
