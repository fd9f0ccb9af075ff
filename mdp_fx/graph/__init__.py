"""Front end and typed graph: tracing, axis types, typing rules, verification."""
