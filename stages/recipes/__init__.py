"""One file per way to graft: its parameters, how it is built, its control."""
