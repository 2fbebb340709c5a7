"""Serendip: serendipitous recommendation in two tiers.

An MLLM plans which interest comes next; a sequence model picks which items
(arXiv 2506.08283, 2405.16363). docs/architecture.md walks one item through the code.
"""

__version__ = "0.1.0"
