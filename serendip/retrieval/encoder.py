"""Runs the exported graph: histories in, user vectors out. Knows no tree and no item ID."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serendip.core import CorruptArtifact

_ONLY_FATAL = 4

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class UserEncoder:
    """One ONNX Runtime session with one thread: processes, not threads, take the cores."""

    def __init__(self, session: ort.InferenceSession):
        self._session = session
        self.provider: str = session.get_providers()[0]

    @classmethod
    def open(cls, path: Path) -> UserEncoder:
        """Opens a graph, on the GPU if there is a working one. Raises CorruptArtifact."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _ONLY_FATAL
        # A spinning thread takes the core from the one that speaks gRPC.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return cls(ort.InferenceSession(str(path), options, providers=_providers()))
        except Exception as e:  # the runtime's own errors share no other class
            raise CorruptArtifact(
                f"onnxruntime {ort.__version__} cannot load it ({type(e).__name__})",
                field=path.name,
                remedy="Publish the retriever again, or bring a newer onnxruntime.",
            ) from e

    def run(self, ids: Int64, length: Int64) -> Float32:
        """User vectors: int64[B, T] right-padded with 0, int64[B] -> float32[B, d + 1]."""
        (user,) = self._session.run(["user"], {"ids": ids, "length": length})
        return np.asarray(user, np.float32)


def _providers() -> list[str | tuple[str, dict[str, str]]]:
    """CUDA only where a driver answers: merely naming it makes the runtime complain elsewhere."""
    cpu: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return cpu
    try:
        if ctypes.CDLL("libcuda.so.1").cuInit(0) != 0:
            return cpu
    except OSError:
        return cpu
    # TF32 keeps 10 bits of the mantissa: scores would depend on where they were made.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), *cpu]
