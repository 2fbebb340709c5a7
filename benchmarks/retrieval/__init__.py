"""The parts of the retriever's bench."""
