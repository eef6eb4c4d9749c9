"""A tree of torchvision's VOCDetection layout with 40 small images."""

from pathlib import Path

import numpy as np
from PIL import Image

from carp_plugin.data.voc import CLASSES

#: Of the images of a split, 0 to 19: those that show a cat, and those that show one only as a difficult object.
CATS, DIFFICULT_CATS = (0, 2, 5, 11), (3, 7)


def voc_tree(root: Path) -> Path:
    """20 images of trainval, 20 of test; cats as ``CATS`` says, besides each image shows one of the classes in turn."""
    home = root / "VOCdevkit" / "VOC2007"
    for inside in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (home / inside).mkdir(parents=True)
    dice = np.random.default_rng(0)
    number = 0
    for split in ("trainval", "test"):
        names = []
        objects = []
        for i in range(20):
            number += 1
            name = f"{number:06d}"
            names.append(name)
            pixels = dice.integers(0, 255, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "JPEGImages" / f"{name}.jpg")
            shown = [(CLASSES[i], "0")] if CLASSES[i] != "cat" else []
            shown += [("cat", "0")] * (i in CATS) + [("cat", "1")] * (
                i in DIFFICULT_CATS + CATS[:1]
            )
            objects.append(shown)
            boxes = "".join(
                f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
                "<xmax>5</xmax><ymax>5</ymax></bndbox></object>"
                for kind, difficult in shown
            )
            (home / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
        main = home / "ImageSets" / "Main"
        (main / f"{split}.txt").write_text("\n".join(names) + "\n")
        for kind in CLASSES:
            lines = []
            for name, shown in zip(names, objects):
                marks = [difficult for one, difficult in shown if one == kind]
                mark = -1 if not marks else 1 if "0" in marks else 0
                lines.append(f"{name} {mark:2d}")
            (main / f"{kind}_{split}.txt").write_text("\n".join(lines) + "\n")
    return root
