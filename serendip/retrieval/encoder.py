"""Runs the exported graph: histories in, user vectors out. Knows no tree and no item ID."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serendip.core import CorruptArtifact

_ONLY_FATAL = 4
_PORTS = {"ids": ("tensor(int64)", 2), "length": ("tensor(int64)", 1), "user": ("tensor(float)", 2)}

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class UserEncoder:
    """One ONNX Runtime session with one thread: processes, not threads, take the cores.

    Attributes:
        width: d + 1, the length of a user vector.
    """

    def __init__(self, session: ort.InferenceSession, width: int):
        self._session = session
        self.width = width
        self.provider: str = session.get_providers()[0]

    @classmethod
    def open(cls, path: Path) -> UserEncoder:
        """Opens a graph, on the GPU if there is a working one.

        Its weights lie beside it, in the file that it names, which the runtime maps: processes
        share them, and opening takes no time.

        Raises:
            CorruptArtifact: the runtime cannot load it, or it has other inputs or outputs than
                (int64[B, T] ids, int64[B] length) -> (float32[B, d + 1] user).
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _ONLY_FATAL
        # A spinning thread takes the core from the one that speaks gRPC.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(str(path), options, providers=_providers())
        except Exception as e:  # the runtime's own errors share no other class
            raise CorruptArtifact(
                f"onnxruntime {ort.__version__} cannot load it and {path.name}.data "
                f"({' '.join(str(e).split())})",
                field=path.name,
                remedy="Publish the retriever again, or bring a newer onnxruntime.",
            ) from e
        return cls(session, _width(session, path.name))

    def run(self, ids: Int64, length: Int64) -> Float32:
        """User vectors: int64[B, T] right-padded with 0, int64[B] -> float32[B, d + 1]."""
        (user,) = self._session.run(["user"], {"ids": ids, "length": length})
        return np.asarray(user, np.float32)


def _width(session: ort.InferenceSession, name: str) -> int:
    ports = [*session.get_inputs(), *session.get_outputs()]
    found = {port.name: (port.type, len(port.shape)) for port in ports}
    width = ports[-1].shape[-1] if found == _PORTS else None
    if not isinstance(width, int):
        raise CorruptArtifact(
            "must map int64[B, T] ids and int64[B] length to float32[B, d + 1] user",
            field=name,
            value=[(port.name, port.type, port.shape) for port in ports],
            remedy="Publish the retriever again.",
        )
    return width


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
