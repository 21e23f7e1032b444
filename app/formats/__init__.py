"""How events may be written on the raw topics beside plain JSON: CloudEvents, Avro, Protobuf."""
