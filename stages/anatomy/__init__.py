"""Where a model keeps its parts: loading, sites, families, hooks, restarts, likelihoods."""
