"""The retriever's gRPC server: serves the low level of the current release."""
