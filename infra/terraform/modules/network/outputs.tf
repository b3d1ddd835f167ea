output "vpc_id" {
  description = "The network's id."
  value       = aws_vpc.this.id
}

output "vpc_cidr" {
  description = "The network's addresses."
  value       = aws_vpc.this.cidr_block
}

# AWS refuses a load balancer of the internet in a network without a gateway: it waits for it.
output "public_subnet_ids" {
  description = "Subnets for the load balancer, one in each zone."
  value       = [for zone in var.availability_zones : aws_subnet.public[zone].id]
  depends_on  = [aws_route.internet, aws_route_table_association.public]
}

# Tasks that start must be able to pull their image: whoever takes these ids waits for the way out.
output "private_subnet_ids" {
  description = "Subnets for tasks and instances, one in each zone."
  value       = [for zone in var.availability_zones : aws_subnet.private[zone].id]
  depends_on  = [aws_route.nat, aws_route_table_association.private, aws_vpc_endpoint.interface, aws_vpc_endpoint.s3]
}

output "private_subnet_ids_by_zone" {
  description = "The same by the name of their zone; a pool takes those whose zone offers its instance types."
  value       = { for zone, subnet in aws_subnet.private : zone => subnet.id }
  depends_on  = [aws_route.nat, aws_route_table_association.private, aws_vpc_endpoint.interface, aws_vpc_endpoint.s3]
}

output "private_route_table_ids" {
  description = "One in each zone, for routes of your own."
  value       = { for zone, table in aws_route_table.private : zone => table.id }
}

output "s3_prefix_list_id" {
  description = "S3's addresses in this region, as security groups name them."
  value       = aws_vpc_endpoint.s3.prefix_list_id
}
