"""What light, lens, sensor and JPEG do to a picture. Where things are does not change."""

from __future__ import annotations

import cv2
import numpy as np

from scenes.noise import Field, gradient, smooth_noise
from scenes.surface import Pixels

_FIELD_SIDE = 48  # light changes slowly: a small field, enlarged, is as good as a large one


def expose(rng: np.random.Generator, image: Pixels, strength: float) -> Pixels:
    """Light, shadow, color cast, blur and noise on uint8 [height, width, 3] RGB; of ``strength`` 0 none, 1 is usual."""
    height, width = image.shape[:2]
    light = _light(rng, strength)
    cast = 1 + strength * rng.normal(0, 0.035, 3)
    gain = np.asarray(cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    gains = cv2.merge([gain * np.float32(factor) for factor in cast])
    lit = np.asarray(cv2.multiply(image, gains, dtype=cv2.CV_8U), np.uint8)
    return _add_noise(rng, _blur(rng, lit, strength * max(height, width) / 640), strength)


def jpeg(rng: np.random.Generator, image: Pixels, strength: float) -> tuple[bytes, Pixels]:
    """Encode an image as JPEG of quality 95 down to 95 - 40 * ``strength``.

    Returns:
        The file's content, and the image that it decodes to, uint8 [height, width, 3] RGB.
    """
    quality = 95 - round(40 * min(strength, 1.5) * float(rng.beta(1.2, 1.8)))
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    return encoded.tobytes(), np.asarray(decoded, np.uint8)


def _light(rng: np.random.Generator, strength: float) -> Field:
    """Brightness over the picture: exposure, fall-off to one side, dark corners, sometimes a shadow's edge."""
    side = _FIELD_SIDE
    field = np.full((side, side), 1 + strength * float(np.clip(rng.normal(-0.02, 0.12), -0.35, 0.2)), np.float32)
    field *= 1 + np.float32(strength * rng.uniform(0, 0.4)) * (gradient(rng, side, side) - 0.5)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    field *= 1 - np.float32(strength * rng.uniform(0, 0.16)) * (axis[:, None] ** 2 + axis[None, :] ** 2)
    if rng.random() < 0.35:
        edge = gradient(rng, side, side) + 0.12 * smooth_noise(rng, side, side, (3, 3), 2)
        softness = np.float32(rng.uniform(0.02, 0.2))
        share = np.float32(rng.uniform(0.15, 0.6))
        field *= 1 - np.float32(strength * rng.uniform(0.15, 0.45)) / (1 + np.exp((edge - share) / softness))
    return np.ascontiguousarray(field, np.float32)


def _blur(rng: np.random.Generator, image: Pixels, strength: float) -> Pixels:
    """Out of focus, shaken, or neither; the width grows with ``strength``."""
    kind = rng.random()
    if kind < 0.45:
        sigma = strength * float(rng.uniform(0.3, 1.1))
        return image if sigma < 0.2 else np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if kind < 0.65:
        length, angle = strength * float(rng.uniform(1.5, 5.0)), float(rng.uniform(0, np.pi))
        return image if length < 1 else _shake(image, length, angle)
    return image


def _shake(image: Pixels, length: float, angle: float) -> Pixels:
    """Blur along a straight line of ``length`` pixels."""
    side = int(np.ceil(length)) // 2 * 2 + 3
    middle = side / 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    ends = [tuple(int(value) for value in np.rint((middle - 0.5 + sign * reach) * 256)) for sign in (-1, 1)]
    line: Pixels = np.zeros((side, side), np.uint8)
    cv2.line(line, ends[0], ends[1], (255,), 1, cv2.LINE_AA, 8)
    kernel = line.astype(np.float32) / np.float32(line.sum(dtype=np.float64))
    return np.asarray(cv2.filter2D(image, -1, kernel), np.uint8)


def _add_noise(rng: np.random.Generator, image: Pixels, strength: float) -> Pixels:
    """Fine noise of brightness and coarser noise of color."""
    height, width = image.shape[:2]
    sigma = np.float32(strength * rng.gamma(1.6, 2.0))
    if sigma < 0.3:
        return image
    # The sum of two random bytes is close enough to a normal distribution, and many times faster. Its standard
    # deviation is 104.5: that of one byte, sqrt((256^2 - 1) / 12), times the square root of 2.
    first, second = (rng.integers(0, 256, (height, width), np.uint8) for _ in range(2))
    scale = float(sigma) / 104.5
    fine = cv2.addWeighted(first, scale, second, scale, -255 * scale, dtype=cv2.CV_32F)
    coarse = rng.standard_normal((height // 3 + 1, width // 3 + 1, 3), np.float32) * (sigma * np.float32(0.6))
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    noise = cv2.add(noise, cv2.merge([fine, fine, fine]))
    return np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U), np.uint8)
