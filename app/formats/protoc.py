"""Protobuf schemas out of their .proto text, for registries that do not give them serialized: protoc compiles them.

It runs in a process of its own, so that whatever a text does to it ends that process, and no worker.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError

from app.formats.schemas import RegistryUnavailable, SchemaUnfit

LONGEST_S: Final = 10.0
MAX_NAME_BYTES: Final = 255  # of one file or folder, as file systems have it
MAX_PATH: Final = 500  # characters
OWN: Final = "onecount-event.proto"
_REFUSED: Final = 70  # a Python that fails by itself ends with another code
_WARNING: Final = re.compile(r"^WARNING: |^[IW]\d{4} |: warning: ")
_PROTOC: Final = f"""
import sys
from importlib.resources import files
from grpc_tools.protoc import main
include = files("grpc_tools") / "_proto"
sys.exit({_REFUSED} if main(["protoc", *sys.argv[1:], f"-I{{include}}"]) else 0)
"""


def compiled(text: str, referenced: Sequence[tuple[str, str]]) -> list[FileDescriptorProto]:
    """The files of a schema, its own last. `referenced`: name and text of the files that it imports, and of those that they do.

    Raises `SchemaUnfit` where protoc refuses the text, `RegistryUnavailable` where it cannot be asked.
    """
    if find_spec("grpc_tools") is None:
        raise RegistryUnavailable(
            "the schema registry gives a Protobuf schema as text only, and grpcio-tools, which compiles it, is not installed: "
            "pip install 'onecount[registry]', or take a registry that knows format=serialized"
        )
    try:
        with TemporaryDirectory(prefix="onecount-") as folder:
            sources, found = Path(folder) / "sources", Path(folder) / "found.pb"
            for name, each in (*referenced, (OWN, text)):
                _write(sources, name, each)
            _run(sources, found)
            files = list(FileDescriptorSet.FromString(found.read_bytes()).file)
    except (OSError, DecodeError) as error:
        raise _unasked(f"{type(error).__name__}: {str(error)[:200]}") from error
    if not files:
        raise _unasked("protoc wrote nothing")
    return files


def _write(sources: Path, name: str, text: str) -> None:
    """A file below the folder. Raises `SchemaUnfit` where it can be none there, whatever its name says."""
    relative = PurePosixPath(name)
    path = sources / relative
    usual = str(relative) == name != "." and name.isprintable() and "\\" not in name and len(name) <= MAX_PATH
    usual = usual and all(len(part.encode()) <= MAX_NAME_BYTES and part != ".." for part in relative.parts)
    if not usual or relative.is_absolute() or path.exists():
        raise SchemaUnfit(f"it refers to {name[:100]!r}, which cannot be the name of a file beside it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except (UnicodeEncodeError, FileExistsError, NotADirectoryError) as error:
        raise SchemaUnfit(f"{name} cannot be a file beside it: {type(error).__name__}") from error


def _run(sources: Path, found: Path) -> None:
    python = [sys.executable, "-P", "-c", _PROTOC]  # -P: no module is looked for where the files lie
    arguments = [f"-I{sources}", "--include_imports", f"--descriptor_set_out={found}", OWN]
    try:
        ended = subprocess.run(
            [*python, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _unasked(f"it took more than {LONGEST_S:g} s") from error
    if ended.returncode == 0:
        return
    lines = ended.stderr.decode(errors="replace").splitlines()
    said = " ".join(line for line in lines if not _WARNING.search(line))
    if ended.returncode != _REFUSED or str(found) in said:
        raise _unasked(f"exit code {ended.returncode}: {said[-200:]}")
    told = said.replace(f"{sources}/", "").replace(f"{OWN}:", "")  # the same wherever it is judged
    raise SchemaUnfit(f"protoc does not read it: {told.strip()[:200]}")


def _unasked(why: str) -> RegistryUnavailable:
    return RegistryUnavailable(f"the text of a Protobuf schema could not be compiled: {why}")
