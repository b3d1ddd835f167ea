# Amazon Managed Prometheus, and one small task that scrapes every edge and writes there.

locals {
  has_prometheus = var.prometheus == null ? 0 : 1

  # As in infra/monitoring/prometheus/prometheus.yml: each edge answers for itself, and any of them
  # for the whole pool as the controller knows it.
  edges = [{ names = [try(var.prometheus.edge_discovery_name, "")], type = "A", port = 8002, refresh_interval = "15s" }]
  scrapes = [
    { job_name = "tidepool", dns_sd_configs = local.edges },
    { job_name = "tidepool-pool", params = { view = ["pool"] }, scrape_timeout = "5s", dns_sd_configs = local.edges },
  ]

  repositories = [
    for found in regexall("^(?P<account>[0-9]{12})\\.dkr\\.ecr\\.(?P<region>[a-z0-9-]+)\\.amazonaws\\.com(?:\\.cn)?/(?P<name>[^:@]+)", try(var.prometheus.collector_image, "")) :
    "arn:${data.aws_partition.current.partition}:ecr:${found.region}:${found.account}:repository/${found.name}"
  ]

  # What ECS does before the container runs: its log streams, and its image where that is in ECR.
  start_statements = concat(
    [{
      Sid      = "Logs"
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = ["${aws_cloudwatch_log_group.this["collector"].arn}:*"]
    }],
    length(local.repositories) == 0 ? [] : [
      { Sid = "Images", Effect = "Allow", Action = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], Resource = local.repositories },
      # Of the whole registry of the account: AWS has no smaller resource for it.
      { Sid = "ImagesLogin", Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
    ],
  )
}

resource "aws_prometheus_workspace" "this" {
  count = local.has_prometheus

  alias       = var.name
  kms_key_arn = var.kms_key_arn

  logging_configuration {
    log_group_arn = "${aws_cloudwatch_log_group.prometheus[0].arn}:*"
  }
}

resource "aws_cloudwatch_log_group" "prometheus" {
  #checkov:skip=CKV_AWS_158:As the tiers' log groups.
  #checkov:skip=CKV_AWS_338:As the tiers' log groups.
  count = local.has_prometheus

  name              = "/aws/vendedlogs/tidepool/${var.name}/prometheus" # the prefix that AWS asks for
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_prometheus_rule_group_namespace" "this" {
  for_each = var.prometheus == null ? {} : var.prometheus.rules

  name         = each.key
  workspace_id = aws_prometheus_workspace.this[0].id
  data         = each.value
}

resource "aws_prometheus_alert_manager_definition" "this" {
  count = local.has_prometheus

  workspace_id = aws_prometheus_workspace.this[0].id
  definition = yamlencode({
    alertmanager_config = yamlencode({
      route = {
        receiver        = "alarms"
        group_by        = ["alertname", "endpoint"]
        group_wait      = "30s"
        repeat_interval = "4h"
      }
      receivers = [{
        name        = "alarms"
        sns_configs = [{ topic_arn = aws_sns_topic.alarms.arn, sigv4 = { region = data.aws_region.current.name }, send_resolved = true }]
      }]
    })
  })

  depends_on = [aws_sns_topic_policy.alarms]
}

resource "aws_security_group" "collector" {
  count = local.has_prometheus

  name        = "${var.name}-collector"
  description = "The collector of metrics: scrapes edges, writes to AWS"
  vpc_id      = var.prometheus.vpc_id

  tags = { Name = "${var.name}-collector" }
}

resource "aws_vpc_security_group_egress_rule" "collector_to_edges" {
  count = local.has_prometheus

  security_group_id            = aws_security_group.collector[0].id
  description                  = "Metrics of the edges"
  referenced_security_group_id = var.prometheus.edge_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 8002
  to_port                      = 8002
}

resource "aws_vpc_security_group_egress_rule" "collector_to_aws" {
  count = local.has_prometheus

  security_group_id = aws_security_group.collector[0].id
  description       = "HTTPS to AWS: metrics, logs, the image"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_iam_role" "collector" {
  count = local.has_prometheus

  name               = "${var.name}-collector"
  assume_role_policy = local.taken_by["ecs-tasks"]
}

resource "aws_iam_role_policy" "collector" {
  count = local.has_prometheus

  name = "write-metrics"
  role = aws_iam_role.collector[0].name
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = ["aps:RemoteWrite"], Resource = [aws_prometheus_workspace.this[0].arn] }]
  })
}

resource "aws_iam_role" "collector_start" {
  count = local.has_prometheus

  name               = "${var.name}-collector-start"
  assume_role_policy = local.taken_by["ecs-tasks"]
}

resource "aws_iam_role_policy" "collector_start" {
  count = local.has_prometheus

  name   = "start"
  role   = aws_iam_role.collector_start[0].name
  policy = jsonencode({ Version = "2012-10-17", Statement = local.start_statements })
}

resource "aws_ecs_task_definition" "collector" {
  count = local.has_prometheus

  family                   = "${var.name}-collector"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = 256
  memory                   = 512
  task_role_arn            = aws_iam_role.collector[0].arn
  execution_role_arn       = aws_iam_role.collector_start[0].arn

  container_definitions = jsonencode([{
    name                   = "collector"
    image                  = var.prometheus.collector_image
    essential              = true
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    environment = [{
      name = "AOT_CONFIG_CONTENT"
      value = yamlencode({
        extensions = {
          health_check = { endpoint = "127.0.0.1:13133" }
          sigv4auth    = { service = "aps", region = data.aws_region.current.name }
        }
        receivers = { prometheus = { config = {
          global         = { scrape_interval = "15s" }
          scrape_configs = local.scrapes
        } } }
        processors = { batch = { timeout = "10s" } }
        exporters = { prometheusremotewrite = {
          endpoint = "${aws_prometheus_workspace.this[0].prometheus_endpoint}api/v1/remote_write"
          auth     = { authenticator = "sigv4auth" }
        } }
        service = {
          extensions = ["health_check", "sigv4auth"]
          pipelines  = { metrics = { receivers = ["prometheus"], processors = ["batch"], exporters = ["prometheusremotewrite"] } }
        }
      })
    }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this["collector"].name
        awslogs-region        = data.aws_region.current.name
        awslogs-stream-prefix = "collector"
      }
    }
  }])
}

resource "aws_ecs_service" "collector" {
  count = local.has_prometheus

  name            = "${var.name}-collector"
  cluster         = var.prometheus.cluster_arn
  task_definition = aws_ecs_task_definition.collector[0].arn
  desired_count   = 1
  launch_type     = "FARGATE"
  propagate_tags  = "SERVICE"
  # Two collectors would write every sample twice, for a while and refused.
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.prometheus.subnet_ids
    security_groups  = [aws_security_group.collector[0].id]
    assign_public_ip = false
  }
}
