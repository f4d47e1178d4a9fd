"""The modalities that clips come in, and the streams that see them."""

MODALITIES = ("rgb", "depth")
STREAMS = {"rgb": ("rgb",), "depth": ("depth",), "fusion": MODALITIES}  # stream -> its modalities
