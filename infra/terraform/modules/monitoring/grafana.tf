# Amazon Managed Grafana. Its dashboards are the JSON files of infra/monitoring/dashboards, imported
# once: AWS gives Terraform no way to them without a second provider.

locals {
  has_grafana = var.grafana == null ? 0 : 1
}

resource "aws_iam_role" "grafana" {
  count = local.has_grafana

  name               = "${var.name}-grafana"
  assume_role_policy = local.taken_by["grafana"]
}

resource "aws_iam_role_policy" "grafana" {
  count = local.has_grafana

  name = "read-metrics"
  role = aws_iam_role.grafana[0].name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["aps:DescribeWorkspace", "aps:GetLabels", "aps:GetMetricMetadata", "aps:GetSeries", "aps:QueryMetrics"]
        Resource = [aws_prometheus_workspace.this[0].arn]
      },
      {
        Effect   = "Allow"
        Action   = ["aps:ListWorkspaces"]
        Resource = ["arn:${data.aws_partition.current.partition}:aps:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:/workspaces*"]
      },
    ]
  })
}

resource "aws_grafana_workspace" "this" {
  count = local.has_grafana

  name                     = var.name
  account_access_type      = "CURRENT_ACCOUNT"
  permission_type          = "CUSTOMER_MANAGED"
  authentication_providers = [var.grafana.authentication]
  data_sources             = ["PROMETHEUS"]
  role_arn                 = aws_iam_role.grafana[0].arn
}
