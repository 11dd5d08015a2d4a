"""One file an architecture: its settings and its model. A new file here is a new `student.architecture`."""
