"""A finished student in use: exported as a graph, asked for whole files of histories, or over HTTP."""
