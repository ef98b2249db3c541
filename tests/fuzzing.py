"""Harm done to files by a seeded generator, as disks, people and enemies do it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import yaml

from shoal.sealed import KEY, seal

CODE = [  # each would import `sentinel`, which leaves a file
    "sentinel:run", "sentinel.py:run", "sentinel.Inputs", "import sentinel", "os.system",
    '"), __import__("sentinel"), ("', "x=__import__('sentinel')", "__import__('sentinel')",
    "x\n__import__('sentinel')", "{__import__('sentinel')}", "torch.ops.load_library", "eval",
]  # fmt: skip


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HARM: list[Callable[[random.Random], Any]] = [
    lambda r: None,
    lambda r: r.choice([True, False]),
    lambda r: r.choice([-1, 0, 1, 2, 3, 2**31, 10**12, 10**30, -(10**18)]),
    lambda r: r.choice([0.5, -1e300, 1e-300, float("nan"), float("inf")]),
    lambda r: r.choice(["", "1", "\x00", "ü" * 40, "../../x", "a" * 5000, "\ud800"]),
    lambda r: r.choice(CODE),
    lambda r: r.choice(
        [[], {}, [[]], [10**6, 10**6], {"node": "x"}, {"same": "x"}, {"float": "x"}]
    ),
    lambda r: deep(r.choice([3, 50, 100, 900])),
]


def changed_value(value: Any, random: random.Random) -> Any:
    """Return a value of another kind, or a near one of the same."""
    if isinstance(value, bool):
        near: Any = not value
    elif isinstance(value, int):
        near = value + random.choice([-1, 1, 7])
    elif isinstance(value, float):
        near = value * random.choice([1.001, 2.0, -1.0])
    elif isinstance(value, str):
        near = value[::-1] + random.choice(["", "x"])
    elif isinstance(value, list):
        near = random.choice([value[1:], value[:-1], [*value, *value], value[::-1], [value]])
    elif isinstance(value, dict):
        near = random.choice([list(value), list(value.values()), {"x": value}])
    else:
        near = 0
    return near if random.random() < 0.4 else random.choice(HARM)(random)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return each container with each of its keys, whole trees down."""
    found, waiting = [], [value]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        found += [(container, key) for key in keys]
        waiting += [container[k] for k in keys if isinstance(container[k], dict | list)]
    return found


def changed_json(values: Any, random: random.Random) -> Any:
    """Return JSON values with one to three changes."""
    values = json.loads(json.dumps(values))
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        known = places(values)
        if not known:
            break
        container, key = random.choice(known)
        match random.randrange(5):
            case 0 if isinstance(container, dict):
                container[random.choice(["x", key + "_", *CODE])] = container.pop(key)
            case 1:
                del container[key]
            case 2:
                other, at = random.choice(known)
                container[key], other[at] = other[at], container[key]
                if not is_tree(values):
                    return deep(5)
            case _:
                container[key] = changed_value(container[key], random)
    return values


def is_tree(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return False
    return True


def changed_bytes(data: bytes, others: list[bytes], random: random.Random) -> bytes:
    """Return a file cut, flipped, filled, emptied, or another one."""
    held = bytearray(data)
    match random.randrange(6):
        case 0:
            return bytes(held[: random.randrange(len(held) + 1)])
        case 1:
            at = random.randrange(len(held) + 1)
            held[at : at + random.randrange(40)] = random.randbytes(random.randrange(40))
        case 2 if others:
            return random.choice(others)
        case 3:
            return random.choice(
                [b"", b"{}", b"[]", b"null", b"[" * 10**5, b"\xff\xfe", b'{"a":' * 10**4]
            )
        case _:
            for _ in range(random.choice([1, 1, 1, 2, 8])):
                held[random.randrange(len(held))] ^= 1 << random.randrange(8)
    return bytes(held)


def harmed(data: bytes, others: list[bytes], random: random.Random) -> tuple[bytes, bool]:
    """Return a file of ours with harm done to it, and whether its checksum was computed anew.

    A third are bytes without understanding; of JSON, a third are values under the old checksum,
    and a third values of somebody who computes the checksum anew or leaves it out.
    """
    kind = random.randrange(3)
    try:
        values = yaml.safe_load(data) if data.startswith(b"model:") else json.loads(data)
    except ValueError:
        kind = 0
    if kind == 0:
        return changed_bytes(data, others, random), False
    if kind == 1 and isinstance(values, dict) and KEY in values:
        held = changed_json({k: v for k, v in values.items() if k != KEY}, random)
        if isinstance(held, dict):
            held = {**held, KEY: values[KEY]}
        return json.dumps(held).encode(), False
    sealed = values.pop(KEY, None) is not None
    held = changed_json(values, random)
    if sealed and random.random() < 0.7 and isinstance(held, dict):
        held = seal(held, finite=False)
    return json.dumps(held).encode(), True
