"""The planner server: which interest comes next, over gRPC."""
