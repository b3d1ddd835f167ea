output "load_balancer_dns_name" {
  description = "What the domain's record points to."
  value       = module.edge.load_balancer_dns_name
}

output "registry_url" {
  description = "What document commands take as --registry."
  value       = module.registry.url
}

output "fleet_secret_arn" {
  description = "The fleet's secret, for its rotation."
  value       = module.registry.fleet_secret_arn
}

output "zones" {
  description = "Where the fleet is; name them as the variable `zones` in what is to last."
  value       = local.zones
}

output "pools" {
  description = "What the controller was told of the pools."
  value       = [module.gpu.config]
}
