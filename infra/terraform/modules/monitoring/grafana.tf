# Amazon Managed Grafana. Its dashboards are the JSON files of infra/monitoring/dashboards, imported
# once: AWS gives Terraform no way to them without a second provider.

locals {
  has_grafana = var.grafana == null ? 0 : 1
}

data "aws_iam_policy_document" "grafana_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["grafana.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

data "aws_iam_policy_document" "grafana" {
  count = local.has_grafana

  statement {
    sid       = "ReadMetrics"
    actions   = ["aps:GetLabels", "aps:GetMetricMetadata", "aps:GetSeries", "aps:QueryMetrics", "aps:DescribeWorkspace"]
    resources = [aws_prometheus_workspace.this[0].arn]
  }
  statement {
    sid       = "FindWorkspaces"
    actions   = ["aps:ListWorkspaces"]
    resources = ["arn:${data.aws_partition.current.partition}:aps:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:/workspaces*"]
  }
}

resource "aws_iam_role" "grafana" {
  count = local.has_grafana

  name               = "${var.name}-grafana"
  assume_role_policy = data.aws_iam_policy_document.grafana_assume.json
}

resource "aws_iam_role_policy" "grafana" {
  count = local.has_grafana

  name   = "read-metrics"
  role   = aws_iam_role.grafana[0].name
  policy = data.aws_iam_policy_document.grafana[0].json
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
