"""The `.pth` lists of ReSC, TransVG, CLIP-VG, HiVG and OneRef."""
