"""Programs from other libraries' models, unchanged: each bridge turns their statements into `ppl`'s, and refuses what
has no right translation."""
