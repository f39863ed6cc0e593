"""VarifocalNet (VFNet) and its relatives for Keras 3."""

__version__ = "0.1.0"
