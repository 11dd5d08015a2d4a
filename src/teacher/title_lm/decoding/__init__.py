"""The whole catalogue ranked by a language model: along a tree of all titles, or by distance from a free answer."""
