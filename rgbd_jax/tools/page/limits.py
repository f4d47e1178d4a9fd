"""How much of a clip the page takes."""

import dataclasses

MEGABYTE = 1 << 20  # bytes; so the browser says it too


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest clip that is taken.

    Attributes:
        megabytes: of one upload, all of its files together; also of what a .zip file unpacks to, four times as much.
        frames: of one modality.
        side: width and height of a frame, pixels.

    Raises:
        ValueError: a limit is below 1.
    """

    megabytes: int = 50
    frames: int = 600
    side: int = 1920

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"--max_{field.name}={getattr(self, field.name)}; expected 1 or more")

    @property
    def size(self) -> int:
        """Bytes of one upload."""
        return self.megabytes * MEGABYTE

    def __str__(self) -> str:
        return f"{self.megabytes} MB, {self.frames} frames, {self.side} pixels a side"
