"""The life of a run: its identity, preparation, order of examples, teacher, measures and files."""
