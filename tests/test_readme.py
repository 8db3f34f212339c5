"""What the README shows is run."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_combiner_of_ones_own_does_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    pictures = np.asarray(names["pictures"])
    assert pictures.shape == (4, 32, 32, 3) and np.isfinite(pictures).all()
    red, green = pictures[..., 0] - pictures[..., 1], pictures[..., 1] - pictures[..., 0]
    assert red[:, :, :16].mean() > 0.03 and green[:, :, 16:].mean() > 0.03


def test_its_links_and_pictures_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [
        link for link in links if not link.startswith("http") and not (Path(__file__).parents[1] / link).exists()
    ]
    assert links and not missing
