"""Attention over paged keys and values. Must not know: models, scheduling, who owns a page."""
