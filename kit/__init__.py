"""Subliminal learning from faithful paraphrases (arXiv 2603.09517), small enough for a laptop."""
