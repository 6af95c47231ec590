"""The reference model, and scenes with identity cards made from seeds, with exact masks, to calibrate and verify on.

Imports ``pipeline`` and ``base``. Cards are cut out of the reference model's photographs or drawn by code, and laid
on tables among other things, with perspective, light, blur and noise. 70 in 100 cards are photographed. The reference
model finds about 9 in 10 of those and not quite 8 in 10 of the drawn ones (score 0.25, mask IoU 0.5; the first 120
verification scenes). The seven photographed cards are in both splits, each drawn card in one.

The scenes compare one precision with another. They are no benchmark: drawn tables are simpler than real ones, and
sheets of paper, which the reference model often takes for cards, are rare.
"""

from scenes.cards import CardSource
from scenes.dataset import SceneDataset, write_dataset
from scenes.errors import SceneError
from scenes.scene import CALIBRATION_SEEDS, SPLITS, VERIFICATION_SEEDS, Scene, generate_scene
from scenes.showcase import draw_showcase

__all__ = [
    "CALIBRATION_SEEDS",
    "SPLITS",
    "VERIFICATION_SEEDS",
    "CardSource",
    "Scene",
    "SceneDataset",
    "SceneError",
    "draw_showcase",
    "generate_scene",
    "write_dataset",
]
