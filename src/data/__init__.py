"""From files to sequences: adapters, id maps, examples, splits, candidates, and the schema of the teacher's outputs."""
