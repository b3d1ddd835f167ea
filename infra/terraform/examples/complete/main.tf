# A network of its own, two pools of different GPUs, a domain with its certificate, and metrics.
#
#   small  L4, up to eight; one of them on demand, three quarters of the rest at the price of spot
#   large  L40S, up to two, on demand: for models that do not fit into 24 GB
#
# usd_per_hour is what alerts and dashboards count an instance with: on demand, in us-east-1
# (infra/prices). Spot costs less, and other sizes and regions something else: change it with them.

locals {
  pools = {
    small = {
      instance_types = ["g6.xlarge", "g6.2xlarge"] # two sizes of one GPU: spot finds one more often
      instances_max  = 8
      spot           = { on_demand_base = 1, on_demand_percent = 25 }
      usd_per_hour   = 0.8048 # g6.xlarge
    }
    large = {
      instance_types = ["g6e.xlarge", "g6e.2xlarge"]
      instances_max  = 2
      spot           = { on_demand_base = 0, on_demand_percent = 100 }
      usd_per_hour   = 2.24208 # g6e.2xlarge
    }
  }

  zones = slice(sort(data.aws_availability_zones.open.names), 0, var.zones)

  # The fleet's own rules, but with the prices of these pools instead of the one that is there.
  prometheus = "${path.module}/../../../monitoring/prometheus"
  price      = "tidepool:price:instance_usd_per_hour"
  groups = concat(
    [{
      name  = "prices"
      rules = [for name, pool in local.pools : { record = local.price, labels = { pool = name }, expr = "vector(${pool.usd_per_hour})" }]
    }],
    [
      for group in yamldecode(file("${local.prometheus}/recording.yml")).groups :
      merge(group, { rules = [for rule in group.rules : rule if try(rule.record, "") != local.price] })
    ],
  )
  rules = { recording = yamlencode({ groups = local.groups }), alerts = file("${local.prometheus}/alerts.yml") }
}

data "aws_availability_zones" "open" {
  #checkov:skip=CKV_AWS_394:The first of the sorted names are taken, and a zone that AWS adds gets a name behind them.
  state = "available"
  # Old accounts still see them, and there is neither a NAT gateway nor Fargate to be had.
  exclude_zone_ids = ["apne1-az3", "usw1-az2"]

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }

  filter {
    name   = "zone-type"
    values = ["availability-zone"] # no local zones
  }

  lifecycle {
    postcondition {
      condition     = length(self.names) >= var.zones
      error_message = "zones: ${var.region} has ${length(self.names)}."
    }
  }
}

# Not every zone has every GPU: each pool lives in those of the network that have its own.
data "aws_ec2_instance_type_offerings" "pool" {
  for_each = local.pools

  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = each.value.instance_types
  }

  filter {
    name   = "location"
    values = local.zones
  }

  lifecycle {
    postcondition {
      condition     = length(self.locations) > 0
      error_message = "pool ${each.key}: none of ${join(", ", local.zones)} has ${join(" or ", each.value.instance_types)}."
    }
  }
}

module "network" {
  source = "../../modules/network"

  name               = var.name
  cidr               = var.cidr
  availability_zones = local.zones
  nat                = var.nat
}

module "registry" {
  source = "../../modules/registry"

  name                 = var.name
  kms_key_arn          = var.kms_key_arn
  force_destroy        = var.force_destroy
  secret_recovery_days = var.force_destroy ? 0 : 7
}

module "edge" {
  source = "../../modules/edge"

  name               = var.name
  vpc_id             = module.network.vpc_id
  public_subnet_ids  = module.network.public_subnet_ids
  private_subnet_ids = module.network.private_subnet_ids
  certificate_arn    = aws_acm_certificate_validation.domain.certificate_arn
  registry           = module.registry
  image              = var.images.edge
  log_group_names    = module.monitoring.log_group_names
  admin_cidrs        = var.admin_cidrs
  pools              = [for pool in module.pool : pool.config]
  # Prices on demand; other sizes and spot cost otherwise. Other regions: in USD, such as l4=0.9.
  device_price_usd_per_h     = var.region == "us-east-1" ? "l4=g6.xlarge,l40s=g6e.2xlarge,cpu=fargate-2-4" : ""
  scraper_security_group_ids = var.collector_image == null ? [] : [module.monitoring.scraper_security_group_id]
}

module "pool" {
  source   = "../../modules/pool"
  for_each = local.pools

  name           = each.key
  edge           = module.edge.for_pools
  registry       = module.registry
  vpc_id         = module.network.vpc_id
  subnets        = { for zone, id in module.network.private_subnet_ids_by_zone : zone => id if contains(data.aws_ec2_instance_type_offerings.pool[each.key].locations, zone) }
  image          = var.images.pool
  instance_types = each.value.instance_types
  instances_max  = each.value.instances_max
  spot           = each.value.spot
  log_group_name = module.monitoring.log_group_names.pool
}

module "monitoring" {
  source = "../../modules/monitoring"

  name         = var.name
  kms_key_arn  = var.kms_key_arn
  alarm_emails = var.alarm_emails
  cluster_name = module.edge.cluster_name
  queue_name   = module.registry.queue_name

  load_balancer = {
    arn_suffix              = module.edge.load_balancer_arn_suffix
    target_group_arn_suffix = module.edge.target_group_arn_suffix
  }

  services = {
    edge       = module.edge.service_name
    controller = module.edge.controller_service_name
    fallback   = module.edge.fallback_service_name
  }

  pools = {
    for name, pool in module.pool : name => {
      autoscaling_group_name = pool.autoscaling_group_name
      instances_min          = pool.config.instances_min
      instances_max          = pool.config.instances_max
    }
  }

  prometheus = var.collector_image == null ? null : {
    cluster_arn            = module.edge.cluster_arn
    vpc_id                 = module.network.vpc_id
    subnet_ids             = module.network.private_subnet_ids
    edge_security_group_id = module.edge.edge_security_group_id
    edge_discovery_name    = module.edge.discovery_name
    collector_image        = var.collector_image
    rules                  = local.rules
  }

  grafana = var.grafana ? {} : null
}
