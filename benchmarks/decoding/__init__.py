"""The parts of the decoding benches: one step under a trie, and what the engine is made of."""
