"""`onecount import`: rows of a CSV, TSV or JSONL file as events on a raw topic, by a mapping that is data.

    import_file(settings, policy, Path("events.csv.gz"), Path("deploy/mappings/shop.yaml"),
    rejected_path=Path("rejected.jsonl"))

Every row is sent at least once and always with the same event_id, so that the product's own deduplication makes it
exactly once.
"""

from app.importer.importing import Summary, import_file
from app.importer.mapping import Mapping, MappingError, load_mapping, parse_mapping
from app.importer.refusal import ImportRefusedError

__all__ = ["ImportRefusedError", "Mapping", "MappingError", "Summary", "import_file", "load_mapping", "parse_mapping"]
