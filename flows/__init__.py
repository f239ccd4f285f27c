"""How the DAG is run: on this machine, on a schedule, over many workers."""
