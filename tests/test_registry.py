"""Names, entry points and targets lead to the same things."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from shoal import registry as module
from shoal.errors import ConfigError, NameNotFoundError
from shoal.registry import Registry


@pytest.fixture
def shapes() -> Registry[type]:
    shapes: Registry[type] = Registry("shape", "shoal.shapes")

    @shapes.register("round")
    class Round: ...

    assert shapes["round"] is Round
    return shapes


def test_a_name_may_be_followed_by_options(shapes):
    entry, options = shapes.find("round?radius=2&filled=true&name=a+b")
    assert entry is shapes["round"]
    assert options == {"radius": 2, "filled": True, "name": "a+b"}


def test_unknown_names_are_answered_with_the_nearest(shapes):
    with pytest.raises(NameNotFoundError, match="did you mean 'round'"):
        shapes.find("rund")


def test_a_name_is_given_once(shapes):
    with pytest.raises(ConfigError, match="already is a shape 'round'"):

        @shapes.register("round")
        class Other: ...

    with pytest.raises(ConfigError, match="cannot name"):
        shapes.register("a:b")


def test_code_is_named_by_its_file(shapes, tmp_path):
    path = tmp_path / "my_shapes.py"
    path.write_text("class Square: ...\n")
    entry, options = shapes.find(f"{path}:Square?side=3")
    assert entry.__name__ == "Square"
    assert options == {"side": 3}
    with pytest.raises(NameNotFoundError, match="Square"):
        shapes.find(f"{path}:Sqare")


def test_entry_points_are_seen_once_a_package_is_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert module.entry_points("shoal.shapes") == ()
    about = tmp_path / "shapes-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[shoal.shapes]\nround = collections:Counter\n")
    assert [point.name for point in module.entry_points("shoal.shapes")] == ["round"]
    assert module.entry_points("shoal.shapes") is module.entry_points("shoal.shapes")


def test_entry_points_are_imported_when_they_are_asked_for(shapes, monkeypatch):
    points = [
        EntryPoint("flat", "collections:OrderedDict", "shoal.shapes"),
        EntryPoint("gone", "no_such_module:Gone", "shoal.shapes"),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: points)
    assert shapes.names() == ["flat", "gone", "round"]
    assert shapes["flat"].__name__ == "OrderedDict"
    with pytest.raises(ConfigError, match=r"'gone' of the package .* cannot be imported"):
        shapes["gone"]
