mock_provider "aws" {
  source          = "./mocks"
  override_during = plan
}

variables {
  name          = "prod"
  alarm_emails  = ["on-call@example.com"]
  load_balancer = { arn_suffix = "app/prod/0123456789abcdef", target_group_arn_suffix = "targetgroup/prod/0123456789abcdef" }
  cluster_name  = "prod"
  services      = { edge = "edge", controller = "controller", fallback = "fallback" }
  queue_name    = "prod-registry-changes"
  pools = {
    small = { autoscaling_group_name = "prod-small", instances_min = 0, instances_max = 4 }
    large = { autoscaling_group_name = "prod-large", instances_min = 1, instances_max = 2 }
  }
}

run "every_tier_and_pool_has_its_alarms" {
  command = plan

  module {
    source = "../modules/monitoring"
  }

  assert {
    condition     = toset(keys(aws_cloudwatch_metric_alarm.no_task)) == toset(["controller", "fallback"]) && toset(keys(aws_cloudwatch_metric_alarm.unused)) == toset(["small", "large"]) && toset(keys(aws_cloudwatch_metric_alarm.instances_late)) == toset(["small", "large"])
    error_message = "no task, no instance, an instance too many"
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.unused["small"].threshold == 0 && aws_cloudwatch_metric_alarm.unused["large"].threshold == 1
    error_message = "what runs without a call is what is above the pool's minimum"
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.no_edge.treat_missing_data == "breaching" && alltrue([for alarm in aws_cloudwatch_metric_alarm.no_task : alarm.treat_missing_data == "breaching"])
    error_message = "silence is an alarm where something must run"
  }

  assert {
    condition     = alltrue([for group in aws_cloudwatch_log_group.this : group.retention_in_days == 30]) && toset(keys(output.log_group_names)) == toset(["edge", "controller", "fallback", "pool", "collector"])
    error_message = "a log group for each tier, kept for a time"
  }

  assert {
    condition     = length(aws_prometheus_workspace.this) + length(aws_grafana_workspace.this) + length(aws_ecs_service.collector) == 0 && output.scraper_security_group_id == null
    error_message = "Prometheus and Grafana only if asked for"
  }
}

run "a_fleet_without_fallback_misses_none" {
  command = plan

  module {
    source = "../modules/monitoring"
  }

  variables {
    services = { edge = "edge", controller = "controller" }
  }

  assert {
    condition     = keys(aws_cloudwatch_metric_alarm.no_task) == ["controller"]
    error_message = "what is not there cannot be missing"
  }
}

run "prometheus_may_write_and_nothing_else" {
  command = plan

  module {
    source = "../modules/monitoring"
  }

  variables {
    prometheus = {
      cluster_arn            = "arn:aws:ecs:us-east-1:123456789012:cluster/prod"
      vpc_id                 = "vpc-0123456789abcdef0"
      subnet_ids             = ["subnet-1b"]
      edge_security_group_id = "sg-0123456789abcded0"
      edge_discovery_name    = "edge.prod.internal"
      collector_image        = "public.ecr.aws/aws-observability/aws-otel-collector:v0.43.1"
      rules                  = { alerts = "groups: []" }
    }
    grafana = {}
  }

  assert {
    condition     = jsondecode(aws_iam_role_policy.collector[0].policy).Statement == [{ Effect = "Allow", Action = ["aps:RemoteWrite"], Resource = [aws_prometheus_workspace.this[0].arn] }]
    error_message = "the collector writes to its workspace"
  }

  assert {
    condition     = aws_vpc_security_group_egress_rule.collector_to_edges[0].to_port == 8002 && aws_vpc_security_group_egress_rule.collector_to_edges[0].referenced_security_group_id == "sg-0123456789abcded0" && !aws_ecs_service.collector[0].network_configuration[0].assign_public_ip
    error_message = "it reaches the edges' metrics, without a public address"
  }

  assert {
    condition     = jsondecode(aws_ecs_task_definition.collector[0].container_definitions)[0].readonlyRootFilesystem && jsondecode(aws_ecs_task_definition.collector[0].container_definitions)[0].user == "10001:10001"
    error_message = "read-only and nobody's user"
  }

  assert {
    condition     = [for job in yamldecode(jsondecode(aws_ecs_task_definition.collector[0].container_definitions)[0].environment[0].value).receivers.prometheus.config.scrape_configs : "${job.job_name} ${job.dns_sd_configs[0].names[0]} ${job.dns_sd_configs[0].port}"] == ["tidepool edge.prod.internal 8002", "tidepool-pool edge.prod.internal 8002"]
    error_message = "both views of every edge"
  }
}

run "refuses_a_collector_that_is_not_pinned" {
  command = plan

  module {
    source = "../modules/monitoring"
  }

  variables {
    prometheus = {
      cluster_arn            = "arn:aws:ecs:us-east-1:123456789012:cluster/prod"
      vpc_id                 = "vpc-0123456789abcdef0"
      subnet_ids             = ["subnet-1b"]
      edge_security_group_id = "sg-0123456789abcded0"
      edge_discovery_name    = "edge.prod.internal"
      collector_image        = "public.ecr.aws/aws-observability/aws-otel-collector:latest"
    }
  }

  expect_failures = [var.prometheus]
}

run "refuses_grafana_without_prometheus_and_an_arn_for_a_suffix" {
  command = plan

  module {
    source = "../modules/monitoring"
  }

  variables {
    grafana       = {}
    load_balancer = { arn_suffix = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/prod/1", target_group_arn_suffix = "targetgroup/prod/1" }
  }

  expect_failures = [var.grafana, var.load_balancer]
}
