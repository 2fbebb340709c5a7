"""The low level: the sequence model, its training and export, and the ClusterRanker."""
