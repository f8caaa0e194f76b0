"""Masks stored as image files: two colours, and nothing that could be read in two ways."""

import io

import numpy as np
import pytest
from PIL import Image

from refcli.data.reading.mask_images import mask_size, read_mask_image
from refcli.errors import DataError
from refcli.geometry.masks import decode_mask

TRUTH = np.zeros((6, 9), bool)
TRUTH[1:4, 2:8] = True


def write(folder, image, **options):
    (folder / "1.png").write_bytes(b"")
    image.save(folder / "1.png", **options)
    return folder


def palette(index):
    image = Image.fromarray((TRUTH * index).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray((TRUTH * 255).astype(np.uint8)),
        Image.fromarray(TRUTH.astype(np.uint8)),
        Image.fromarray(TRUTH),
        Image.fromarray(np.stack([TRUTH * 255] * 3, 2).astype(np.uint8)),
        palette(1),
    ],
    ids=["0 and 255", "0 and 1", "one bit", "RGB", "palette"],
)
def test_the_region_is_everything_that_is_not_black(tmp_path, image):
    folder = write(tmp_path, image)
    assert (decode_mask(read_mask_image(folder, "1.png")) == TRUTH).all()
    assert mask_size(folder, "1.png") == (9, 6)


def test_a_mask_with_alpha_or_grey_edges_is_refused(tmp_path):
    clear = Image.new("RGBA", (9, 6), (0, 0, 0, 0))
    with pytest.raises(DataError, match="transparent"):
        read_mask_image(write(tmp_path, clear), "1.png")
    with pytest.raises(DataError, match="transparent"):
        read_mask_image(write(tmp_path, palette(1), transparency=0), "1.png")
    blurred = (TRUTH * 255).astype(np.uint8)
    blurred[1, 2] = 128
    with pytest.raises(DataError, match="more than two colours"):
        read_mask_image(write(tmp_path, Image.fromarray(blurred)), "1.png")


def test_a_file_that_is_no_png_or_cut_off_is_refused(tmp_path):
    jpeg = io.BytesIO()
    Image.new("L", (9, 6)).save(jpeg, "JPEG")
    (tmp_path / "1.png").write_bytes(jpeg.getvalue())
    with pytest.raises(DataError, match="not a PNG"):
        mask_size(tmp_path, "1.png")
    whole = write(tmp_path, Image.fromarray((TRUTH * 255).astype(np.uint8))) / "1.png"
    whole.write_bytes(whole.read_bytes()[:45])
    with pytest.raises(DataError):
        read_mask_image(tmp_path, "1.png")
