"""The ``nn.Module`` of an architecture, its weights, its batch-norm folding and its ONNX graph."""

from levit_search.model.folding import fold
from levit_search.model.levit import LevitModel
from levit_search.model.onnx_graph import export_onnx
from levit_search.model.weights import load_weights, save_weights, to_timm

__all__ = ["LevitModel", "export_onnx", "fold", "load_weights", "save_weights", "to_timm"]
