# The cluster, the edges behind their load balancer, the controller, and the CPU workers.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  region     = data.aws_region.current.name
  partition  = data.aws_partition.current.partition
  account_id = data.aws_caller_identity.current.account_id

  # AWS: "Task CPU and memory" of Fargate. MiB by CPU units.
  fargate_mib = {
    "256"   = [512, 1024, 2048]
    "512"   = range(1024, 4096 + 1, 1024)
    "1024"  = range(2048, 8192 + 1, 1024)
    "2048"  = range(4096, 16384 + 1, 1024)
    "4096"  = range(8192, 30720 + 1, 1024)
    "8192"  = range(16384, 61440 + 1, 4096)
    "16384" = range(32768, 122880 + 1, 8192)
  }

  fargate_sizes = join(", ", [
    for cpu in ["256", "512", "1024", "2048", "4096", "8192", "16384"] :
    "${cpu} with ${min(local.fargate_mib[cpu]...)} to ${max(local.fargate_mib[cpu]...)} MiB in steps of ${cpu == "256" ? "a doubling" : local.fargate_mib[cpu][1] - local.fargate_mib[cpu][0]}"
  ])

  # Tiers that run here.
  tiers = toset(concat(["controller", "edge"], var.fallback.tasks > 0 ? ["fallback"] : []))

  log_group_names = { for tier in local.tiers : tier => var.log_group_names[tier] }
}

resource "aws_ecs_cluster" "fleet" {
  # checkov:skip=CKV_AWS_65:Container Insights is paid by metric and by GB, and nothing here reads it: alarms count samples of ECS's own metrics
  name = var.name

  # Said, since an account may have it on for every cluster.
  setting {
    name  = "containerInsights"
    value = "disabled"
  }
}

# The edges' addresses under one name, for what scrapes their metrics.
resource "aws_service_discovery_private_dns_namespace" "fleet" {
  name        = "${var.name}.internal"
  description = "Tasks of the fleet ${var.name}"
  vpc         = var.vpc_id
}

# Cloud Map answers with eight records, drawn by chance where there are more.
check "every_edge_is_scraped" {
  assert {
    condition     = length(var.scraper_security_group_ids) == 0 || var.tasks.max <= 8
    error_message = "tasks: max is ${var.tasks.max}, but who scrapes by discovery_name sees 8 edges at a time: above that, sums of metrics are too small and series come and go. Keep max at 8 with larger tasks, or scrape by another list of addresses."
  }
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
