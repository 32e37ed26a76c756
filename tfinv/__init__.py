"""tfinv: can deep networks learn invariants?

Sub-packages are imported on demand (`import tfinv.layers`), so that importing
`tfinv` costs nothing and engineers can take the layers without the data.
"""

__version__ = "0.1.0"
