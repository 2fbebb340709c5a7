"""Vectors, the balanced 4-level clustering, its descriptions: the ClusterTree."""
