# Who may talk to whom. Every rule is a resource of its own, as pools add theirs.

locals {
  port           = 8000
  admin_port     = 8002
  control_port   = 8010
  worker_port    = 8100
  admin          = length(var.admin_cidrs) > 0
  security_tiers = setunion(local.tiers, ["balancer"])

  # From one tier to another: both sides say so.
  flows = merge(
    {
      calls        = { from = "balancer", to = "edge", port = local.port }
      edge_control = { from = "edge", to = "controller", port = local.control_port }
    },
    local.admin ? { admin = { from = "balancer", to = "edge", port = local.admin_port } } : {},
    var.fallback.tasks > 0 ? {
      fallback_calls   = { from = "edge", to = "fallback", port = local.worker_port }
      fallback_control = { from = "fallback", to = "controller", port = local.control_port }
    } : {},
  )
}

resource "aws_security_group" "tier" {
  # checkov:skip=CKV2_AWS_5:each is the load balancer's or a service's, which checkov does not see through for_each
  for_each = local.security_tiers

  name        = "${var.name}-${each.key}"
  description = "The ${each.key} of the fleet ${var.name}"
  vpc_id      = var.vpc_id

  tags = { Name = "${var.name}-${each.key}" }
}

resource "aws_vpc_security_group_ingress_rule" "flow" {
  for_each = local.flows

  security_group_id            = aws_security_group.tier[each.value.to].id
  referenced_security_group_id = aws_security_group.tier[each.value.from].id
  description                  = "${each.value.from} to ${each.value.to}"
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
}

resource "aws_vpc_security_group_egress_rule" "flow" {
  for_each = local.flows

  security_group_id            = aws_security_group.tier[each.value.from].id
  referenced_security_group_id = aws_security_group.tier[each.value.to].id
  description                  = "${each.value.from} to ${each.value.to}"
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
}

# AWS's own services: addresses of S3, ECR, Secrets Manager, SQS and logs are not known beforehand.
resource "aws_vpc_security_group_egress_rule" "aws" {
  for_each = local.tiers

  security_group_id = aws_security_group.tier[each.key].id
  description       = "AWS services, by TLS"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_ingress_rule" "public" {
  # checkov:skip=CKV_AWS_260:port 80 only answers with a redirect to HTTPS
  for_each = { for pair in setproduct(["80", "443"], var.balancer.ingress_cidrs) : "${pair[0]} ${pair[1]}" => pair }

  security_group_id = aws_security_group.tier["balancer"].id
  description       = "Callers"
  cidr_ipv4         = each.value[1]
  ip_protocol       = "tcp"
  from_port         = tonumber(each.value[0])
  to_port           = tonumber(each.value[0])
}

resource "aws_vpc_security_group_ingress_rule" "scraper" {
  count = length(var.scraper_security_group_ids)

  security_group_id            = aws_security_group.tier["edge"].id
  referenced_security_group_id = var.scraper_security_group_ids[count.index]
  description                  = "What scrapes metrics"
  ip_protocol                  = "tcp"
  from_port                    = local.admin_port
  to_port                      = local.admin_port
}
