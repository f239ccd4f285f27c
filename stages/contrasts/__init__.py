"""Minimal pairs: two prompts that differ in one place, and the continuations that are right after one or the other."""
