variable "name" {
  description = "The fleet's name; every resource's name starts with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name: 2 to 20 of a-z, 0-9 and '-', beginning with a letter and not ending in '-'."
  }
}

variable "cidr" {
  description = "The network's addresses. Three quarters go to private subnets, one quarter to public ones."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.cidr)) && try(tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 20, false)
    error_message = "cidr: an IPv4 range from /16 to /20, such as 10.40.0.0/16: a load balancer needs 8 free addresses in each public subnet."
  }
}

variable "availability_zones" {
  description = "Zones of one region, in the order of their subnets; append only, since a zone's addresses follow from its place."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 2 && length(var.availability_zones) <= 6
    error_message = "availability_zones: 2 to 6 zones: a load balancer needs two."
  }
  validation {
    condition     = alltrue([for zone in var.availability_zones : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", zone))])
    error_message = "availability_zones: names such as us-east-1a, not zone ids such as use1-az1."
  }
  validation {
    condition     = length(distinct([for zone in var.availability_zones : substr(zone, 0, max(length(zone) - 1, 0))])) <= 1
    error_message = "availability_zones: all of one region."
  }
  validation {
    condition     = length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "availability_zones: a zone is named twice."
  }
}

variable "nat" {
  description = "How private subnets reach the outside: one NAT gateway for all (\"single\", the cheapest), one in each zone (\"per_zone\"), or none (\"none\": then interface_endpoints or routes of your own must lead to AWS)."
  type        = string
  default     = "single"

  validation {
    condition     = contains(["single", "per_zone", "none"], var.nat)
    error_message = "nat: \"single\", \"per_zone\" or \"none\"."
  }
}

variable "interface_endpoints" {
  description = "AWS services to reach without the NAT gateway, such as [\"ecr.api\", \"ecr.dkr\"]; S3 always has its gateway endpoint, which costs nothing."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for service in var.interface_endpoints : can(regex("^[a-z0-9][a-z0-9.-]+$", service)) && service != "s3"])
    error_message = "interface_endpoints: short names such as \"ecr.api\"; s3 has its gateway endpoint."
  }
  validation {
    condition     = var.nat != "none" || length(setsubtract(["autoscaling", "ec2", "ecr.api", "ecr.dkr", "ecs", "ecs-agent", "ecs-telemetry", "logs", "secretsmanager", "sqs"], var.interface_endpoints)) == 0
    error_message = "interface_endpoints: without a NAT gateway they hold all that tasks and instances call: autoscaling, ec2, ecr.api, ecr.dkr, ecs, ecs-agent, ecs-telemetry, logs, secretsmanager, sqs."
  }
}
