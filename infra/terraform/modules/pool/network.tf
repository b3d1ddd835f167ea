# A worker is reached by edges alone, and its instance by nobody. The controller is dialled by
# workers and dials none.

resource "aws_security_group" "worker" {
  # checkov:skip=CKV2_AWS_5:the controller gives it to each task that it runs
  name        = "${local.full_name}-worker"
  description = "Workers of the pool ${var.name}"
  vpc_id      = var.vpc_id

  tags = { Name = "${local.full_name}-worker" }
}

resource "aws_security_group" "instance" {
  name        = "${local.full_name}-instance"
  description = "Instances of the pool ${var.name}: nobody comes in"
  vpc_id      = var.vpc_id

  tags = { Name = "${local.full_name}-instance" }
}

locals {
  worker_port  = 8100
  control_port = 8010

  flows = {
    calls   = { from = var.edge.edge_security_group_id, to = aws_security_group.worker.id, port = local.worker_port, what = "edge to worker" }
    control = { from = aws_security_group.worker.id, to = var.edge.controller_security_group_id, port = local.control_port, what = "worker to controller" }
  }
}

resource "aws_vpc_security_group_ingress_rule" "flow" {
  for_each = local.flows

  security_group_id            = each.value.to
  referenced_security_group_id = each.value.from
  description                  = "${each.value.what}, pool ${var.name}"
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
}

resource "aws_vpc_security_group_egress_rule" "flow" {
  for_each = local.flows

  security_group_id            = each.value.from
  referenced_security_group_id = each.value.to
  description                  = "${each.value.what}, pool ${var.name}"
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
}

# AWS's own services: addresses of S3, ECR, ECS, Secrets Manager and logs are not known beforehand.
resource "aws_vpc_security_group_egress_rule" "aws" {
  for_each = { worker = aws_security_group.worker.id, instance = aws_security_group.instance.id }

  security_group_id = each.value
  description       = "AWS services, by TLS"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}
