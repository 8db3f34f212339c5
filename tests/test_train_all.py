"""The queue of all trainings: it continues where it stopped, and says what is left."""

import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))
import reproduce_mnist  # noqa: E402
import train_all  # noqa: E402


def item(name, code, runs, *after):
    """A network whose training is a line of Python, in the place of hours."""
    folder = runs / name
    writes = f"import pathlib as p; d = p.Path({str(folder)!r}); d.mkdir(parents=True, exist_ok=True); {code}"
    return train_all.Item(name, folder, 10, 100, ["-c", writes], [["-c", line] for line in after])


@pytest.fixture
def runs(tmp_path, monkeypatch):
    count = "f = d / 'n'; f.write_text(f.read_text() + 'x' if f.exists() else 'x')"
    items = [
        item("first", count, tmp_path, f"open({str(tmp_path / 'measured')!r}, 'a').write('x')"),
        item("second", f"{count}; raise SystemExit(3 if len(f.read_text()) == 1 else 0)", tmp_path),
        item("third", count, tmp_path),
    ]
    monkeypatch.setattr(train_all, "queue", lambda *folders: items)
    return tmp_path


def starts(runs):
    return [
        len(path.read_text()) if path.exists() else 0 for path in (runs / n / "n" for n in ("first", "second", "third"))
    ]


def test_it_stops_at_a_failure_and_continues_there(runs):
    with pytest.raises(SystemExit, match="second stopped with status 3; start this command again to continue"):
        train_all.main(runs=runs)
    assert starts(runs) == [1, 1, 0]
    train_all.main(runs=runs)
    assert starts(runs) == [1, 2, 1]
    train_all.main(runs=runs)
    assert starts(runs) == [1, 2, 1] and (runs / "measured").read_text() == "x"


def test_only_those_named_are_trained(runs):
    train_all.main(("third",), runs=runs)
    assert starts(runs) == [0, 0, 1]
    with pytest.raises(SystemExit, match="ONLY must be names of first, second, third, got 'forth'"):
        train_all.main(("forth",), runs=runs)


def test_the_list_has_rates_and_hours(runs, capsys):
    train_all.main(("third",), runs=runs)
    (runs / "first").mkdir()
    rows = ["update,loss,images_per_second", "10,0.5,0", "20,0.4,0.25", "40,0.3,0.25"]
    (runs / "first" / "log.csv").write_text("\r\n".join(rows) + "\r\n")
    train_all.main(show_list=True, runs=runs)
    lines = capsys.readouterr().out.splitlines()
    line = lambda name: next(line for line in lines if line.startswith(f"{name} "))
    assert "40 of     100 updates" in line("first") and "0.7 hours left" in line("first")  # 600 images at 1/4 a second
    assert "not started" in line("second") and "done" in line("third")
    assert lines[-1] == "0.7 hours left for the 2 networks whose speed is known"


def test_runs_are_where_the_figures_of_part_b_look_for_them(tmp_path):
    items = {item.name: item for item in train_all.queue(Path("runs"), tmp_path, tmp_path)}
    assert items["class-spec"].run == inspect.signature(reproduce_mnist.main).parameters["runs"].default / "class-spec"
    for item in items.values():
        assert item.train[item.train.index("--run") + 1] == str(item.run)


def test_the_queue_is_the_courses_lengths(tmp_path):
    items = {item.name: item for item in train_all.queue(tmp_path, Path("data"), Path("weights"))}
    assert list(items) == ["class-spec", "time-spec", "letters-first", "letters", "flow-class-spec", "flow-time-spec",
                           "denoise-spec", "time-best", "mini", "denoise-pure"]  # fmt: skip
    assert [items[name].updates for name in ("class-spec", "denoise-spec", "time-best")] == [9360, 1170, 28110]
    for epochs in (1, 5, 10, 15, 20):
        assert f" --keep-epochs {epochs} " in " ".join([*items["time-spec"].train, ""])


def test_every_command_of_the_queue_has_flags_that_its_script_knows(tmp_path):
    """A wrong flag would be found hours later."""
    for item in train_all.queue(tmp_path, tmp_path, tmp_path):
        for words in (item.train, *item.measure):
            file = words[0] if words[0] != "-m" else None
            source = (ROOT / (file or "jdiff/cli/mnist.py")).read_text()
            for flag in (word[2:].replace("-", "_") for word in words if word.startswith("--")):
                assert f"    {flag}: " in source, (words[:3], flag)
