"""The ``nn.Module`` of an architecture, its layouts, weights, folding, features and ONNX graph."""

from levit_search.model.blocks import Layout, set_layout
from levit_search.model.build import Features, Model, build
from levit_search.model.folding import fold
from levit_search.model.graft import GraftModel
from levit_search.model.levit import LevitModel
from levit_search.model.onnx_graph import export_onnx, write_graph
from levit_search.model.source import TrainedWeights
from levit_search.model.transfer import misfit, ordered, transfer
from levit_search.model.weights import (
    load_donor,
    load_exactly,
    load_weights,
    save_weights,
    to_timm,
)

__all__ = [
    "Features",
    "GraftModel",
    "Layout",
    "LevitModel",
    "Model",
    "TrainedWeights",
    "build",
    "export_onnx",
    "fold",
    "load_donor",
    "load_exactly",
    "load_weights",
    "misfit",
    "ordered",
    "save_weights",
    "set_layout",
    "to_timm",
    "transfer",
    "write_graph",
]
