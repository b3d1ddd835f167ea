# Where all alarms go: CloudWatch's and, with Managed Prometheus, those of its rules.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

resource "aws_sns_topic" "alarms" {
  #checkov:skip=CKV_AWS_26:kms_key_arn gives a key of yours; CloudWatch cannot publish through AWS's own key for SNS.
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
}

locals {
  this_account = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }

  topic_statements = concat(
    [{
      Sid       = "AlarmsOfThisAccount"
      Effect    = "Allow"
      Principal = { Service = "cloudwatch.amazonaws.com" }
      Action    = ["sns:Publish"]
      Resource  = [aws_sns_topic.alarms.arn]
      Condition = local.this_account
    }],
    [for workspace in aws_prometheus_workspace.this : {
      Sid       = "AlertsOfTheWorkspace"
      Effect    = "Allow"
      Principal = { Service = "aps.amazonaws.com" }
      Action    = ["sns:GetTopicAttributes", "sns:Publish"]
      Resource  = [aws_sns_topic.alarms.arn]
      Condition = merge(local.this_account, { ArnEquals = { "aws:SourceArn" = workspace.arn } })
    }],
  )

  # Who may take a role: a service of AWS, for this account.
  taken_by = {
    for service in ["ecs-tasks", "grafana"] : service => jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect    = "Allow"
        Principal = { Service = "${service}.amazonaws.com" }
        Action    = "sts:AssumeRole"
        Condition = local.this_account
      }]
    })
  }
}

resource "aws_sns_topic_policy" "alarms" {
  arn    = aws_sns_topic.alarms.arn
  policy = jsonencode({ Version = "2012-10-17", Statement = local.topic_statements })
}

resource "aws_sns_topic_subscription" "mail" {
  for_each = var.alarm_emails

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.key
}
