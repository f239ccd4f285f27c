"""One verb per DVC stage, in pipeline order, and the nouns they share."""
