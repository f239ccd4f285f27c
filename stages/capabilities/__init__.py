"""Capabilities that Graftline generates itself: prompts with answers, split so that no test item is trained on."""
