"""The `.pth` lists of ReSC, TransVG, CLIP-VG, HiVG and OneRef: one tuple per expression, in several layouts."""
