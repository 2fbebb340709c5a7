"""Stands here so that tests/ is on the path: helper modules are imported from every folder."""
