"""The modalities of clips."""

MODALITIES = ("rgb", "depth")
STREAMS = {"rgb": ("rgb",), "depth": ("depth",), "fusion": MODALITIES}  # config.modality -> modalities of its clips
