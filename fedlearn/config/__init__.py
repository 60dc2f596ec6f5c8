"""The composition root: ``conf/`` and the user's overrides become the objects of a run."""
