"""The modalities of clips."""

from ml_collections import ConfigDict

MODALITIES = ("rgb", "depth")
STREAMS = {"rgb": ("rgb",), "depth": ("depth",), "fusion": MODALITIES}  # config.modality -> modalities of its clips


def training_modalities(config: ConfigDict) -> tuple[str, ...]:
    """Returns the modalities of the clips of a training batch: those of the network, with a teacher both."""
    return MODALITIES if config.loss.teacher else STREAMS[config.modality]
