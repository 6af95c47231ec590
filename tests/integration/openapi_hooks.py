"""For schemathesis: half of the images that it sends are images (``SCHEMATHESIS_HOOKS``)."""

from __future__ import annotations

import cv2
import numpy as np
import schemathesis
from hypothesis import strategies as st

_GRAY = np.full((40, 60, 3), 90, np.uint8)
_IMAGES = [cv2.imencode(suffix, _GRAY)[1].tobytes() for suffix in (".jpg", ".png", ".webp")]
_BODIES = st.sampled_from(_IMAGES) | st.binary(max_size=300)

schemathesis.openapi.format("binary", _BODIES)
for _kind in ("image/jpeg", "image/png", "application/octet-stream"):
    schemathesis.openapi.media_type(_kind, _BODIES)


@schemathesis.hook
def map_query(context, query):
    """A class that the model has, in place of most others."""
    return _with_known_class(query)


@schemathesis.hook
def map_body(context, body):
    """The same in a form."""
    return _with_known_class(body)


def _with_known_class(values):
    if isinstance(values, dict) and isinstance(values.get("classes"), str) and len(values["classes"]) < 10:
        return {**values, "classes": "card"}
    return values
