"""RGB-D motion recognition (gestures and actions from colour and depth video) in JAX and Flax.

Trained networks, and experiments by the name of their config:

    import rgbd_jax

    classifier = rgbd_jax.load("demo-fusion")
    prediction = classifier.predict(**rgbd_jax.example("push"))
    prediction.top(3)

    rgbd_jax.train("demo:depth", workdir="runs/demo_depth", **{"train.epochs": 8})
    rgbd_jax.evaluate("demo:depth", workdir="runs/demo_depth")

Errors are exceptions with the messages of the command line.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rgbd_jax.experiment import evaluate, train
    from rgbd_jax.inference.classifier import Classifier, ClipFeatures, ClipPrediction, load
    from rgbd_jax.inference.example import example

__version__ = "0.1.0"
__all__ = ["Classifier", "ClipFeatures", "ClipPrediction", "evaluate", "example", "load", "train"]

# Modules take seconds to import: only when a name is used.
_MODULES = {"train": "experiment", "evaluate": "experiment", "example": "inference.example"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'inference.classifier')}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if sys.argv[:1] == ["-m"]:  # Python imports the package to find the module that it is to run
    importlib.import_module("rgbd_jax.cli").refuse_module(sys.orig_argv[sys.orig_argv.index("-m") + 1])
