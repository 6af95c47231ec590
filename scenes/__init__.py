"""Scenes with identity cards, composed from seeds: images for calibration and verification with exact masks.

Cards are cut out of the reference model's photographs, where these are given, or drawn by code, and laid on tables
among other things, under perspective, light, blur and noise. Each card's mask follows from geometry, to the pixel.

Both kinds of card are in both splits, 70 in 100 of them photographed: the reference model has learnt from real cards.
It finds about 9 in 10 of those, but not quite 8 in 10 of the drawn ones (score 0.25, mask IoU 0.5 or more; the first
120 verification scenes). The seven photographed cards are the same in both splits; drawn ones never are.

The scenes are a test of one precision against another, not a benchmark: drawn tables are simpler than real ones, and
sheets of paper, which the reference model often takes for cards, are rare.
"""

from scenes.card import CardSource
from scenes.dataset import SceneDataset, write_dataset
from scenes.errors import SceneError
from scenes.options import CALIBRATION_SEEDS, SPLITS, VERIFICATION_SEEDS, SceneOptions
from scenes.scene import Scene, generate_scene, generate_scenes
from scenes.showcase import draw_showcase

__all__ = [
    "CALIBRATION_SEEDS",
    "SPLITS",
    "VERIFICATION_SEEDS",
    "CardSource",
    "Scene",
    "SceneDataset",
    "SceneError",
    "SceneOptions",
    "draw_showcase",
    "generate_scene",
    "generate_scenes",
    "write_dataset",
]
