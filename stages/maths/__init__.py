"""Tensors in, tensors out, no files: alignment, similarity, intervals."""
