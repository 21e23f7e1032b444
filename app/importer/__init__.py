"""`onecount import`: rows of a CSV, TSV, JSONL or XLSX file as events on a raw topic, by a mapping that is data.

    import_file(settings, policy, Path("events.csv.gz"), Path("deploy/mappings/shop.yaml"),
    rejected_path=Path("rejected.jsonl"))

Every row is sent at least once and always with the same event_id, so that the product's own deduplication makes it
exactly once.
"""

from app.importer.importing import Summary, import_file
from app.importer.mapping import (
    Given,
    Mapping,
    MappingError,
    apply_given,
    built_in,
    find_mapping,
    load_mapping,
    parse_mapping,
)
from app.importer.refusal import ImportRefusedError

__all__ = [
    "Given",
    "ImportRefusedError",
    "Mapping",
    "MappingError",
    "Summary",
    "apply_given",
    "built_in",
    "find_mapping",
    "import_file",
    "load_mapping",
    "parse_mapping",
]
