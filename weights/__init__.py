"""Reading and writing checkpoints: file names, layouts, strict loading."""

from .folder import MINIATURE_FOLDER, Model, load_model

__all__ = ["MINIATURE_FOLDER", "Model", "load_model"]
