output "log_group_names" {
  description = "The log group of each tier: edge, controller, fallback, pool, collector."
  value       = { for tier, group in aws_cloudwatch_log_group.this : tier => group.name }
}

output "topic_arn" {
  description = "Where alarms go; subscribe what else should hear of them."
  value       = aws_sns_topic.alarms.arn
}

output "scraper_security_group_id" {
  description = "Who may read the edges' metrics on 8002; null without prometheus."
  value       = one(aws_security_group.collector[*].id)
}

output "prometheus_endpoint" {
  description = "The workspace, as a data source of Grafana; null without prometheus."
  value       = one(aws_prometheus_workspace.this[*].prometheus_endpoint)
}

output "grafana_url" {
  description = "Where the dashboards are; null without grafana."
  value       = var.grafana == null ? null : "https://${aws_grafana_workspace.this[0].endpoint}"
}
