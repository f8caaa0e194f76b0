"""Image files and archives of images for tests."""

import io
import tarfile
import zipfile

from PIL import Image

from refcli.data.sources.record import RawImage

COCO = RawImage(
    "coco:9", ("COCO_train2014_000000000009.jpg", "000000000009.jpg", "COCO_val2014_000000000009.jpg"), 8, 6
)


def write_image(path, size=(8, 6), file_format=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, file_format, **options)
    return path


def png_bytes(size, colour="red"):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
