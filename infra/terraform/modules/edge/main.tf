# The cluster, the edges behind their load balancer, the controller, and the CPU workers.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  region     = data.aws_region.current.name
  partition  = data.aws_partition.current.partition
  account_id = data.aws_caller_identity.current.account_id

  # Tiers that run here.
  tiers = toset(concat(["controller", "edge"], var.fallback.tasks > 0 ? ["fallback"] : []))

  log_group_names = { for tier in local.tiers : tier => var.log_group_names[tier] }
}

resource "aws_ecs_cluster" "fleet" {
  name = var.name

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

# The edges' addresses under one name, for what scrapes their metrics.
resource "aws_service_discovery_private_dns_namespace" "fleet" {
  name        = "${var.name}.internal"
  description = "Tasks of the fleet ${var.name}"
  vpc         = var.vpc_id
}

resource "aws_service_discovery_service" "edge" {
  name          = "edge"
  force_destroy = true # ECS takes addresses back a little later than `terraform destroy` asks

  dns_config {
    namespace_id   = aws_service_discovery_private_dns_namespace.fleet.id
    routing_policy = "MULTIVALUE"

    dns_records {
      type = "A"
      ttl  = 10
    }
  }
}
