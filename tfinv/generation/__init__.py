"""What is asked of a generator: its error by class and parameter, as table, figures and animation."""

from tfinv.generation.animation import save_animation
from tfinv.generation.errors import Renderer, evaluate_generation, resolution, summarise
from tfinv.generation.figures import error_against_parameter, panel
from tfinv.generation.report import columns, error_table
from tfinv.generation.samples import prior_samples, samples_figure

__all__ = [
    "Renderer",
    "columns",
    "error_against_parameter",
    "error_table",
    "evaluate_generation",
    "panel",
    "prior_samples",
    "resolution",
    "samples_figure",
    "save_animation",
    "summarise",
]
