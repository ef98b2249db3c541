from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from shoal.data import DataSet, ImageLoader, data_sets, load_data
from shoal.data.facts import facts_of
from shoal.errors import ConfigError, DataError, NameNotFoundError

IMAGES = torch.arange(10 * 3 * 4 * 4).reshape(10, 3, 4, 4).to(torch.uint8)
LABELS = torch.arange(10) % 2


def images(count=10, **options):
    return ImageLoader(IMAGES[:count], LABELS[:count], batch_size=4, **options)


def test_example_inputs_are_the_first_images_normalised():
    data = DataSet("x", images(augment="flip_crop", shuffle=True, mean=0.5, std=0.5), images())
    torch.testing.assert_close(data.example_inputs(), IMAGES[:2] / 127.5 - 1)
    assert data.example_inputs(batch=7).shape == (7, 3, 4, 4)


def test_example_inputs_join_small_batches_and_keep_several_inputs():
    batches = [(torch.full((1, 2), i), torch.full((1, 3), i), torch.tensor([0])) for i in range(3)]
    first, second = DataSet("x", batches, batches).example_inputs()
    assert first.tolist() == [[0, 0], [1, 1]]
    assert second.shape == (2, 3)


def test_too_few_images_for_an_example():
    with pytest.raises(DataError, match="'x' has 1 training samples: at least 2"):
        DataSet("x", images(1), images()).example_inputs()
    lengths = [(torch.zeros(1, 3), torch.zeros(1)), (torch.zeros(1, 4), torch.zeros(1))]
    with pytest.raises(DataError, match="other shapes than each other: give it a batch_size of at"):
        DataSet("x", lengths, lengths).example_inputs()


def test_example_inputs_by_keywords_are_a_dict():
    ids = torch.arange(6).reshape(2, 3)
    batches = [{"ids": ids, "mask": ids > 0, "labels": torch.zeros(2)}]
    data = DataSet("x", batches, batches)
    inputs = data.example_inputs()
    assert list(inputs) == ["ids", "mask"]
    assert inputs["ids"].tolist() == ids.tolist()
    assert data.sample_shape == (3,)
    assert data.describe() == "x: batches: 1 train, 1 val; samples of 3"


def test_describe():
    data = DataSet("x", images(), images(4), classes=("a", "b"), notes=("one",))
    assert data.describe() == "x: 10 train, 4 val images of 3×4×4 in 2 classes"
    scaled = DataSet("x", images(), images(4), mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 0.125))
    assert scaled.describe().endswith(", mean 0.5, 0.25, 0, deviation 1, 0.5, 0.125")
    assert data.num_classes == 2


def test_registry_holds_the_built_in_kinds():
    assert data_sets.names() == [
        "aircraft",
        "cifar10",
        "cifar100",
        "digits",
        "dtd",
        "flowers102",
        "folder",
        "pacs",
        "tiny_imagenet",
        "vlcs",
    ]


FACTORIES = """
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset
from shoal.data import DataSet
from shoal.data.facts import facts_of

def loader(n):
    return DataLoader(TensorDataset(torch.zeros(n, 5), torch.zeros(n, dtype=torch.long)), n)

def two(n=4): return loader(n), loader(2)
def three(): return [loader(4), loader(2), loader(3)]
def whole(): return DataSet("mine", loader(4), loader(2), classes=("a", "b"))
def one(): return loader(4)
def four(): return (1, 2, 3, 4)
def once(): return (b for b in [1]), loader(2)
def no_length(): return iter, loader(2)
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter([(torch.zeros(5), 0)])
def stream(): return DataLoader(Stream(), 1), loader(2)
def broken(): raise OSError("disk on fire")
"""


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "my_data_factories.py"
    path.write_text(FACTORIES)
    return path


def test_factories_of_a_file(module):
    two = load_data(f"{module}:two?n=6")
    assert two.test is None
    assert two.example_inputs().shape == (2, 5)
    assert next(iter(two.train))[0].shape == (6, 5)
    assert two.sample_shape == (5,)
    assert two.num_classes is None
    assert two.describe().endswith("batches: 1 train, 1 val; samples of 5")
    assert load_data(f"{module}:three").test is not None
    assert load_data(f"{module}:whole").name == "mine"


def test_a_factory_of_a_module(module, monkeypatch):
    monkeypatch.syspath_prepend(module.parent)
    assert load_data("my_data_factories:whole").num_classes == 2


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("one", DataError, r"returned DataLoader: return a shoal.data.DataSet, \(train, val\)"),
        ("four", DataError, "returned 4 things"),
        ("once", DataError, "can be read only once"),
        ("no_length", DataError, "iterable of batches with a length"),
        ("stream", DataError, "iterable of batches with a length"),
        ("broken", ConfigError, "disk on fire"),
        ("two?m=1", ConfigError, "does not take 'm'"),
        ("tree", NameNotFoundError, "three"),
    ],
)
def test_factories_that_fail_do_so_in_one_line(module, name, error, message):
    with pytest.raises(error, match=message) as caught:
        load_data(f"{module}:{name}")
    assert "\n" not in str(caught.value)


def test_options_that_a_factory_would_ignore_are_refused(module):
    with pytest.raises(ConfigError, match="train_samples does not apply"):
        load_data(f"{module}:two", train_samples=10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("cifar:/data", "did you mean 'cifar10'"),
        ("imagenet:/data", "did you mean 'tiny_imagenet'"),
        ("mnist", "choose from: aircraft, cifar10, cifar100, digits"),
        ("foldr:/data", "did you mean 'folder'"),
    ],
)
def test_unknown_kinds_give_the_nearest(spec, message):
    with pytest.raises(NameNotFoundError, match=message):
        load_data(spec)


def test_a_bare_folder_is_pointed_to_its_kind(tmp_path):
    with pytest.raises(NameNotFoundError, match=f"write 'folder:{tmp_path}'"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("digits", "digits"),
        ("folder:/home/me/photos/", "folder:photos"),
        ("/home/me/mine.py:build", "mine.py:build"),
        ("/home/me/mine.py:build?root=/home/me/photos", "mine.py:build"),
        ("package.module:build", "package.module:build"),
    ],
)
def test_the_short_name_tells_nothing_of_the_machine(name: str, short: str):
    assert DataSet(name, images(), images()).short_name == short


def test_facts_are_the_data_sets_own_or_its_loaders():
    assert DataSet("x", images(), images()).facts() == {"mean": [0.0] * 3, "std": [1.0] * 3}
    named = DataSet("x", images(), images(), classes=("a", "b"), mean=(0.5,) * 3).facts()
    assert named == {"classes": ["a", "b"], "mean": [0.5] * 3, "std": [1.0] * 3}
    batches = [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))]
    assert DataSet("x", batches, batches).facts() == {}


def test_classes_of_a_torchvision_like_data_set_are_found():
    whole = TensorDataset(torch.zeros(4, 3))
    whole.classes = ["a", "b"]
    assert facts_of(DataLoader(whole)) == {"classes": ("a", "b")}
    assert facts_of(DataLoader(Subset(whole, [0, 1]))) == {"classes": ("a", "b")}


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            "folder:~nobody_such/photos",
            DataError,
            "~nobody_such/photos",
        ),
        ("foldr:~nobody_such/photos", NameNotFoundError, "did you mean 'folder'"),
        ("~nobody_such/photos", NameNotFoundError, "unknown data set '~nobody_such/photos'"),
    ],
)
def test_the_folder_of_a_user_who_is_not_there_is_one_line(spec, error, message):
    with pytest.raises(error, match=message) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)
