"""What is sent for an image: HEIC and AVIF are converted, everything else is sent unchanged."""

import builtins
import io

import numpy as np
import pytest
from PIL import Image

from client.errors import RequestError
from client.images import encoded_image
from pipeline.images import decode_image
from tests.chaos.corpus_valid import encoded

PICTURE = Image.linear_gradient("L").resize((96, 64)).convert("RGB")


def test_avif_becomes_an_upright_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.avif"
    path.write_bytes(encoded(PICTURE, "AVIF", quality=95, exif=exif))
    for given in (path, path.read_bytes()):
        data = encoded_image(given)
        assert data.startswith(b"\xff\xd8\xff")
        expected = np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270))
        assert np.abs(decode_image(data).astype(int) - expected).max() < 12


def test_what_the_server_reads_goes_as_it_is(tmp_path):
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        data = encoded(PICTURE, kind)
        assert encoded_image(data) == data


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_heic_without_the_plugin_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_plugin(name, *arguments, **options):
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_plugin)
    with pytest.raises(RequestError, match="pip install pillow-heif"):
        encoded_image(HEIC)


def test_heic_with_the_plugin():
    plugin = pytest.importorskip(
        "pillow_heif", reason="pillow-heif is missing; after pip install pillow-heif, make test-unit runs it"
    )
    stream = io.BytesIO()
    plugin.from_pillow(PICTURE).save(stream, quality=95)
    assert np.abs(decode_image(encoded_image(stream.getvalue())).astype(int) - np.asarray(PICTURE)).max() < 12
    with pytest.raises(RequestError, match="cannot be converted"):
        encoded_image(HEIC)


def test_broken_avif_is_refused():
    with pytest.raises(RequestError, match="AVIF cannot be converted"):
        encoded_image(encoded(PICTURE, "AVIF")[:60])
