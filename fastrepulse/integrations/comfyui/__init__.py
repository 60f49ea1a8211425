"""A ComfyUI custom node: this folder goes into ComfyUI's custom_nodes."""

from .node import RepulsionNode

NODE_CLASS_MAPPINGS = {"FastRepulse": RepulsionNode}
NODE_DISPLAY_NAME_MAPPINGS = {"FastRepulse": "Repulsion (fastrepulse)"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
