"""What became of each layer is what the search did; times of parts are those of the whole."""

from __future__ import annotations

import json
from collections import Counter

import torch

from captures import resnet20
from shoal.measure import count_macs
from shoal.merge.merge import merge_
from shoal.search.layers import Layer, layers_before_and_after, region_times
from shoal.surgery import collapse_, drop_, linearize_

INPUTS = torch.randn(2, 3, 32, 32)


def test_each_layer_has_the_fate_that_it_had() -> None:
    dense = resnet20()
    best = dense.copy()
    drop_(best, ["layer1.1"])
    collapse_(best, ["layer2.1", "layer3.2"], [(torch.randn(8, 3, 32, 32), None)])
    linearize_(best, ["layer1.0.relu"], how="identity")
    merged = best.copy()
    report = merge_(merged, policy="always")
    before, after = layers_before_and_after(dense, best, merged, report, INPUTS)
    fates = {layer.path: layer.fate for layer in before}
    assert len(before) == 20 + 19
    assert fates["layer1.1.conv1"] == fates["layer1.1.conv2"] == fates["layer1.1.relu"] == "dropped"
    assert fates["layer2.1.conv1"] == fates["layer3.2.conv2"] == "collapsed"
    assert fates["layer1.0.relu"] == "linearized"
    assert fates["conv1"] == fates["linear"] == fates["layer1.1.relu_1"] == "kept"
    assert Counter(fates.values())["dropped"] == 3
    assert sum(layer.macs for layer in before) == count_macs(dense, INPUTS).total
    assert sum(layer.macs for layer in after) == count_macs(merged, INPUTS).total
    collapsed = [layer.path for layer in after if layer.fate == "collapsed"]
    assert collapsed == ["layer2.1.collapsed", "layer3.2.collapsed"]
    assert Layer.from_dict(json.loads(json.dumps(before[0].to_dict()))) == before[0]


def test_layers_that_become_one_are_merged() -> None:
    dense = resnet20()
    best = dense.copy()
    linearize_(best, ["relu"], how="identity")
    linearize_(best, ["layer1.0.relu"], how="identity")
    merged = best.copy()
    report = merge_(merged, policy="always")
    before, after = layers_before_and_after(dense, best, merged, report, INPUTS)
    joined = {layer for item in report.merged if item.weighted_before > 1 for layer in item.layers}
    assert {layer.path for layer in before if layer.fate == "merged"} == joined & {
        layer.path for layer in before if layer.macs
    }
    assert {layer.path for layer in after if layer.fate == "merged"} == {
        item.name for item in report.merged if item.weighted_before > 1
    }


def test_the_time_of_each_part_is_above_0_where_there_is_something() -> None:
    dense = resnet20()
    best = dense.copy()
    drop_(best, ["layer1.1"])
    found = {part.name: part for part in region_times(dense, best, INPUTS)}
    assert found["layer1.1"].dense_ms > 0.0
    assert found["layer2.0"].dense_ms > 0.0
    assert found["layer2.0"].result_ms > 0.0
    assert found["linear"].result_ms > 0.0
    assert 0.0 <= found["layer1.1"].result_ms < found["layer1.1"].dense_ms
