"""What the compiler itself says of a step's memory: that it fits so, or that it does not fit."""

from __future__ import annotations

import re
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class XlaMemory:
    """XLA's figures of a compiled step, bytes of a device, as `memory_analysis` gives them.

    Attributes:
        arguments: what the step is given, padded to the device's tiles.
        outputs: what it returns.
        aliased: of the outputs, what takes the place of arguments.
        temporaries: all else. Of a TPU they lie in several memories, and do not add up.
        peak: at the fullest moment, where the compiler of the platform says that: a TPU's.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int | None

    @classmethod
    def of(cls, compiled: Any, platform: str) -> XlaMemory | None:
        """Return the figures of a step for a platform; None where it has none."""
        stats = compiled.memory_analysis()
        if stats is None:
            return None
        # On a CPU and a GPU, temporaries are one allocation, and this peak is something else.
        peak = getattr(stats, "peak_memory_in_bytes", 0) if platform == "tpu" else 0
        return cls(
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes,
            aliased=stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            peak=peak or None,
        )

    @property
    def total(self) -> int:
        """What a device needs."""
        return self._lasting + self.temporaries if self.peak is None else self.peak

    @property
    def passing(self) -> int:
        """Of that, what is neither an argument nor an output."""
        return max(0, self.total - self._lasting)

    @property
    def _lasting(self) -> int:
        return self.arguments + self.outputs - self.aliased


@attrs.frozen
class Refusal:
    """Why a compiler did not compile a step.

    Attributes:
        said: in its words.
        passing: bytes of a device that the step needs beside its arguments; None where it does
            not say.
    """

    said: str
    passing: int | None

    @classmethod
    def read(cls, message: str, arguments: int) -> Refusal:
        """Read the numbers of libtpu's two refusals: early, of temporaries alone; late, of all.

        Args:
            message: of the error.
            arguments: bytes of a device that the step is given.
        """
        early = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds", message)
        late = re.search(r"Used ([\d.]+)([KMGT]) of", message)
        passing = None
        if found := early or late:
            passing = int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1))
            passing = passing if early else max(0, passing - arguments)
        said = re.search(r"[Rr]an out of memory.*", message)
        return cls((said[0] if said else message)[:160], passing)
