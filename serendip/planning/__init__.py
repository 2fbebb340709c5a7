"""The high level: prompt, MLLM, trie, decoding, fine-tuning, bulk planning, plan store."""
