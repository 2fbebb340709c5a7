"""The retriever on PyTriton: Triton's gRPC endpoint and dynamic batcher, a Python callable behind.

python -m peers.on_pytriton ROOT BATCH WINDOW_US
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from serving.material import CLUSTERS, HISTORY, K

from peers.tensors import MODEL, NumberedRanker, free_ports


def main() -> None:
    """Serves until SIGTERM."""
    root, most, window_us = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ranker = NumberedRanker(root)

    @batch
    def infer(history: Any, nodes: Any) -> dict[str, Any]:
        items, scores = ranker.retrieve(history.tolist(), nodes.tolist())
        return {"items": np.array(items, np.int64), "scores": np.array(scores, np.float32)}

    http, grpc, metrics = free_ports(3)
    config = TritonConfig(
        http_address="127.0.0.1", http_port=http, grpc_address="127.0.0.1", grpc_port=grpc,
        metrics_port=metrics, allow_gpu_metrics=False, log_verbose=0,
    )  # fmt: skip
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with Triton(config=config) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=infer,
            inputs=[
                Tensor(name="history", dtype=np.int64, shape=(HISTORY,)),
                Tensor(name="nodes", dtype=np.int32, shape=(CLUSTERS,)),
            ],
            outputs=[
                Tensor(name="items", dtype=np.int64, shape=(K,)),
                Tensor(name="scores", dtype=np.float32, shape=(K,)),
            ],
            config=ModelConfig(
                batching=True,
                max_batch_size=most,
                batcher=DynamicBatcher(max_queue_delay_microseconds=window_us),
            ),
            strict=False,
        )
        triton.run()
        page = f"http://127.0.0.1:{metrics}/metrics"
        print(f"pytriton ready on 127.0.0.1:{grpc}, metrics {page}", flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
