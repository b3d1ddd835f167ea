output "url" {
  description = "What callers take as --url."
  value       = "https://${local.url_host}"
}

output "registry_url" {
  description = "What document commands take as --registry."
  value       = module.registry.url
}

output "fleet_secret_arn" {
  description = "The fleet's secret, for its rotation."
  value       = module.registry.fleet_secret_arn
}

output "pools" {
  description = "What the controller was told of the pools."
  value       = [for pool in module.pool : pool.config]
}

output "zones" {
  description = "Where each pool is."
  value       = { for name, pool in local.pools : name => sort(distinct(data.aws_ec2_instance_type_offerings.pool[name].locations)) }
}

output "prometheus_endpoint" {
  description = "Managed Prometheus, as a data source; null: there is none."
  value       = module.monitoring.prometheus_endpoint
}

output "grafana_url" {
  description = "Managed Grafana; null: there is none."
  value       = module.monitoring.grafana_url
}
