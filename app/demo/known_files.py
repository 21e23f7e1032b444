"""Which mapping fits a file, by its name."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from app.importer import ImportRefusedError
from app.local.processes import PROJECT_ROOT

MAPPINGS: Final = PROJECT_ROOT / "deploy/mappings"
# Names are compared in lower case; the first pattern that fits decides.
KNOWN_FILES: Final = (
    ("puffy-events-*.csv*", "shop.yaml"),
    ("shop-*.csv*", "shop.yaml"),
    ("ipinyou-*.tsv*", "dsp-log.yaml"),
    ("dsp-*.tsv*", "dsp-log.yaml"),
    ("criteo-journeys-*.tsv*", "criteo.yaml"),
)


def mapping_for(file: Path, given: Path | None) -> Path:
    """The mapping given, else the one for files of this name; `ImportRefusedError` if there is none."""
    if given is not None:
        return given
    for pattern, mapping in KNOWN_FILES:
        if fnmatch(file.name.lower(), pattern):
            return MAPPINGS / mapping
    known = "\n".join(f"  {pattern:<24} {mapping}" for pattern, mapping in KNOWN_FILES)
    raise ImportRefusedError(
        f"no mapping is known for {file.name}: say with --map which columns mean what. deploy/mappings has examples to "
        f"start from; files of these names need none:\n{known}"
    )
