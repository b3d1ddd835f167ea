"""What is said of pools on AWS, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pool.aws.config import BadPools, PoolConfig, decode, worker_id

POOL: dict[str, Any] = {
    "name": "gpu",
    "group": "prod-gpu",
    "task_definition": "arn:aws:ecs:us-east-1:123456789012:task-definition/prod-gpu:3",
    "instances_max": 2,
    "subnets": ["subnet-0a"],
    "security_groups": ["sg-0a"],
}


def document(*pools: dict[str, Any], **more: Any) -> bytes:
    """Return what Terraform writes."""
    return msgspec.json.encode({"fleet": "prod", "cluster": "prod", "pools": pools, **more})


def pool(**more: Any) -> dict[str, Any]:
    return {**POOL, **more}


def test_least_that_is_said_gets_the_rest_by_default() -> None:
    (found,) = decode(document(POOL)).pools
    assert found == PoolConfig(
        name="gpu",
        group="prod-gpu",
        task_definition=POOL["task_definition"],
        container="pool",
        instances_min=0,
        instances_max=2,
        workers_per_instance=1,
        device="cuda:0",
        subnets=("subnet-0a",),
        security_groups=("sg-0a",),
        rest_s=600.0,
        start_s=240.0,
    )


def test_places_are_as_many_as_fit_on_all_instances_and_named_by_the_pool() -> None:
    (found,) = decode(document(pool(workers_per_instance=2, instances_min=1))).pools
    assert (found.workers_min, found.workers_max) == (2, 4)
    ids = [worker_id(node_id) for node_id in found.node_ids()]
    assert ids == ["gpu-0-0", "gpu-1-0", "gpu-2-0", "gpu-3-0"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"{", "pools: Input data was truncated"),
        (b"\xff", "pools: "),
        (document(), "$.pools"),
        (document(pool(instances_max=0)), "$.pools[0].instances_max"),
        (document(pool(instances_max="2")), "$.pools[0].instances_max"),
        (document(pool(instances_min=3)), "instances_min 3 is more than instances_max 2"),
        (document(POOL, pool(instance_min=1)), "`instance_min` - at `$.pools[1]`"),
        (document(pool(subnets=[])), "$.pools[0].subnets"),
        (document(pool(subnets=["vpc-1"])), "$.pools[0].subnets[0]"),
        (document(pool(security_groups=["default"])), "$.pools[0].security_groups[0]"),
        (document(pool(device="gpu")), "$.pools[0].device"),
        (document(pool(name="GPU")), "$.pools[0].name"),
        (document(pool(name="g" * 25)), "$.pools[0].name"),
        (document(POOL, fleet="my fleet"), "$.fleet"),
        (document(POOL, region="us-east-1"), "`region`"),
        (document(POOL, pool(group="other")), "name 'gpu' is that of two pools"),
        (document(POOL, pool(name="cheap")), "group 'prod-gpu' is that of two pools"),
        (document(pool(instances_max=500, workers_per_instance=4)), "room for 2000 workers"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(text: bytes, named: str) -> None:
    with pytest.raises(BadPools) as caught:
        decode(text)
    assert named in str(caught.value)
