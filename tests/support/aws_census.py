"""What there is in an account: asked of every service that our modules make something in.

A census before an apply and one after the destroy must be equal; `blind_to` says what is in a
Terraform state that no row here would see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Client = Any
Clients = Callable[[str], Client]

_GONE = {"deleted", "deleting", "terminated", "shutting-down", "INACTIVE"}


@dataclass(frozen=True)
class Row:
    """One list of one service.

    Args:
        service, call, found: what is asked, and the answer's field with the list.
        name: the field that names an element; empty where the elements are names themselves.
        types: of resources in Terraform that this list shows.
        asked: arguments of the call.
        state: the field that tells what is gone and still listed.
    """

    service: str
    call: str
    found: str
    name: str
    types: tuple[str, ...]
    asked: dict[str, Any] = field(default_factory=dict)
    state: str = ""


_OWN_POLICIES = {"Scope": "Local"}
_OF_ECS = {"ServiceNamespace": "ecs"}
_ACTIVE = {"status": "ACTIVE"}

ROWS = (
    Row("ec2", "describe_vpcs", "Vpcs", "VpcId", ("aws_vpc",)),
    Row("ec2", "describe_subnets", "Subnets", "SubnetId", ("aws_subnet",)),
    Row("ec2", "describe_security_groups", "SecurityGroups", "GroupId", ("aws_security_group",)),
    Row(
        *("ec2", "describe_security_group_rules", "SecurityGroupRules", "SecurityGroupRuleId"),
        ("aws_vpc_security_group_ingress_rule", "aws_vpc_security_group_egress_rule"),
    ),
    Row("ec2", "describe_route_tables", "RouteTables", "RouteTableId", ("aws_route_table",)),
    Row(
        *("ec2", "describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
        ("aws_internet_gateway",),
    ),
    Row(
        *("ec2", "describe_nat_gateways", "NatGateways", "NatGatewayId"),
        ("aws_nat_gateway",),
        state="State",
    ),
    Row("ec2", "describe_addresses", "Addresses", "AllocationId", ("aws_eip",)),
    Row(
        *("ec2", "describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
        ("aws_vpc_endpoint",),
        state="State",
    ),
    Row(
        *("ec2", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
        ("aws_launch_template",),
    ),
    Row("ec2", "describe_volumes", "Volumes", "VolumeId", ()),
    Row(
        *("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups"),
        "AutoScalingGroupName",
        ("aws_autoscaling_group",),
    ),
    Row(
        *("application-autoscaling", "describe_scalable_targets", "ScalableTargets", "ResourceId"),
        ("aws_appautoscaling_target",),
        _OF_ECS,
    ),
    Row(
        *("application-autoscaling", "describe_scaling_policies", "ScalingPolicies", "PolicyName"),
        ("aws_appautoscaling_policy",),
        _OF_ECS,
    ),
    Row(
        *("ecs", "list_task_definitions", "taskDefinitionArns", ""),
        ("aws_ecs_task_definition",),
        _ACTIVE,
    ),
    Row("elbv2", "describe_load_balancers", "LoadBalancers", "LoadBalancerArn", ("aws_lb",)),
    Row(
        "elbv2",
        "describe_target_groups",
        "TargetGroups",
        "TargetGroupArn",
        ("aws_lb_target_group",),
    ),
    Row("iam", "list_roles", "Roles", "RoleName", ("aws_iam_role",)),
    Row("iam", "list_policies", "Policies", "Arn", ("aws_iam_policy",), _OWN_POLICIES),
    Row(
        *("iam", "list_instance_profiles", "InstanceProfiles", "InstanceProfileName"),
        ("aws_iam_instance_profile",),
    ),
    Row("s3", "list_buckets", "Buckets", "Name", ("aws_s3_bucket",)),
    Row("sqs", "list_queues", "QueueUrls", "", ("aws_sqs_queue",)),
    Row("sns", "list_topics", "Topics", "TopicArn", ("aws_sns_topic",)),
    Row(
        *("sns", "list_subscriptions", "Subscriptions", "SubscriptionArn"),
        ("aws_sns_topic_subscription",),
    ),
    Row("logs", "describe_log_groups", "logGroups", "logGroupName", ("aws_cloudwatch_log_group",)),
    Row(
        *("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
        ("aws_cloudwatch_metric_alarm",),
    ),
    Row("secretsmanager", "list_secrets", "SecretList", "ARN", ("aws_secretsmanager_secret",)),
    Row(
        "acm",
        "list_certificates",
        "CertificateSummaryList",
        "CertificateArn",
        ("aws_acm_certificate",),
    ),
    Row(
        *("servicediscovery", "list_namespaces", "Namespaces", "Id"),
        ("aws_service_discovery_private_dns_namespace",),
    ),
    Row("servicediscovery", "list_services", "Services", "Id", ("aws_service_discovery_service",)),
    Row("amp", "list_workspaces", "workspaces", "workspaceId", ("aws_prometheus_workspace",)),
)

# Network interfaces have no row: nothing of ours makes one by itself, and moto leaves those of NAT
# gateways and tasks that have ended, where AWS would refuse to delete their subnet.

# What ends with what holds it, or is listed with it.
PARTS = {
    "aws_acm_certificate_validation": "a wait, not a thing",
    "aws_default_security_group": "AWS's own of the VPC",
    "aws_ecs_cluster": "below",
    "aws_ecs_service": "listed by cluster",
    "aws_iam_role_policy": "of its role",
    "aws_iam_role_policy_attachment": "of its role",
    "aws_lb_listener": "of its load balancer",
    "aws_lb_listener_rule": "of its listener",
    "aws_prometheus_alert_manager_definition": "of its workspace",
    "aws_prometheus_rule_group_namespace": "of its workspace",
    "aws_route": "of its route table",
    "aws_route53_record": "listed by zone",
    "aws_route_table_association": "of its route table",
    "aws_s3_bucket_lifecycle_configuration": "of its bucket",
    "aws_s3_bucket_notification": "of its bucket",
    "aws_s3_bucket_ownership_controls": "of its bucket",
    "aws_s3_bucket_policy": "of its bucket",
    "aws_s3_bucket_public_access_block": "of its bucket",
    "aws_s3_bucket_server_side_encryption_configuration": "of its bucket",
    "aws_s3_bucket_versioning": "of its bucket",
    "aws_secretsmanager_secret_version": "of its secret",
    "aws_sns_topic_policy": "of its topic",
    "aws_sqs_queue_policy": "of its queue",
    "aws_sqs_queue_redrive_allow_policy": "of its queue",
}


def taken(clients: Clients) -> set[str]:
    """Return everything that there is, as `service list: name`."""
    return {
        f"{row.service} {row.found}: {name}" for row in ROWS for name in _names(row, clients)
    } | {*_within(clients)}


def blind_to(types: Iterable[str]) -> set[str]:
    """Return the types of resources that no row would show."""
    return {*types} - {shown for row in ROWS for shown in row.types} - {*PARTS}


def not_shown(census: Iterable[str], types: Iterable[str]) -> set[str]:
    """Return the types in a state of which a census of that account shows nothing."""
    lists = {entry.partition(":")[0] for entry in census}
    return {
        kind
        for row in ROWS
        for kind in row.types
        if kind in {*types} and f"{row.service} {row.found}" not in lists
    }


def _names(row: Row, clients: Clients) -> Iterator[str]:
    for element in _elements(clients(row.service), row.call, row.found, **row.asked):
        if not row.name:
            yield element
        elif not row.state or element.get(row.state) not in _GONE:
            yield element[row.name]


def _elements(client: Client, call: str, found: str, **asked: Any) -> list[Any]:
    if client.can_paginate(call):
        pages = client.get_paginator(call).paginate(**asked)
        return [element for page in pages for element in page.get(found, ())]
    return list(getattr(client, call)(**asked).get(found, ()))


def _within(clients: Clients) -> Iterator[str]:
    yield from _of_ecs(clients("ecs"))
    for reservation in _elements(clients("ec2"), "describe_instances", "Reservations"):
        for instance in reservation["Instances"]:
            if instance["State"]["Name"] not in _GONE:
                yield f"ec2 Instances: {instance['InstanceId']}"
    route53 = clients("route53")
    for zone in _elements(route53, "list_hosted_zones", "HostedZones"):
        # Those of Cloud Map's namespaces: AWS deletes them with the namespace, moto leaves them.
        if zone["Name"].endswith("-hz"):
            continue
        asked = {"HostedZoneId": zone["Id"]}
        records = _elements(route53, "list_resource_record_sets", "ResourceRecordSets", **asked)
        for record in records:
            yield f"route53 records: {zone['Name']} {record['Name']} {record['Type']}"


def _of_ecs(ecs: Client) -> Iterator[str]:
    # A cluster that was deleted is listed as inactive for a while.
    arns = _elements(ecs, "list_clusters", "clusterArns")
    for cluster in ecs.describe_clusters(clusters=arns)["clusters"]:
        if cluster["status"] in _GONE:
            continue
        yield f"ecs clusters: {cluster['clusterArn']}"
        for call, found in (
            ("list_services", "serviceArns"),
            ("list_tasks", "taskArns"),
            ("list_container_instances", "containerInstanceArns"),
        ):
            for arn in _elements(ecs, call, found, cluster=cluster["clusterArn"]):
                yield f"ecs {found}: {arn}"
