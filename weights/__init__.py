"""Reading and writing checkpoints: files, names, layouts, strict loading."""

from .convert import convert
from .folder import MINIATURE_FOLDER
from .inspect import inspect
from .loading import Model, load_model
from .on_demand import OnDemandModel

__all__ = ["MINIATURE_FOLDER", "Model", "OnDemandModel", "convert", "inspect", "load_model"]
