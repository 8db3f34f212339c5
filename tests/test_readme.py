"""What the README shows is run."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_its_code_does_what_it_says():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(code, "README.md", "exec"), names)
    pictures = np.asarray(names["pictures"])
    assert pictures.shape == (4, 32, 32, 3) and np.isfinite(pictures).all()
    red, green = pictures[..., 0] - pictures[..., 1], pictures[..., 1] - pictures[..., 0]
    assert red[:, :, :16].mean() > 0.1 and green[:, :, 16:].mean() > 0.1
    illusions, edited, completed = (np.asarray(names[name]) for name in ("illusions", "edited", "completed"))
    assert illusions.shape == (8, 32, 32, 3) and edited.shape == completed.shape == (1, 1, 32, 32, 3)
    np.testing.assert_allclose(completed[0, 0, :, :16], illusions[0, :, :16], atol=1e-5)
    blue, red = edited[..., 2] - edited[..., 0], illusions[..., 0] - illusions[..., 2]
    assert red.mean() > 0.1 and blue.mean() > 0.1


def test_its_links_and_pictures_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [
        link for link in links if not link.startswith("http") and not (Path(__file__).parents[1] / link).exists()
    ]
    assert links and not missing
