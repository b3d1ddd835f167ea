# The load balancer: HTTPS in front of the edges, HTTP only as a redirect.

resource "aws_lb" "edge" {
  # checkov:skip=CKV_AWS_91:who called is in the edges' own access log; the balancer's would need a bucket of its own
  # checkov:skip=CKV_AWS_150:`terraform destroy` of this module is meant to end it
  # checkov:skip=CKV2_AWS_28:calls need a key and have quotas at the edge; a WAF costs and can be attached to the ARN
  name                       = "${var.name}-edge"
  load_balancer_type         = "application"
  security_groups            = [aws_security_group.tier["balancer"].id]
  subnets                    = var.public_subnet_ids
  idle_timeout               = var.balancer.idle_s
  drop_invalid_header_fields = true
  desync_mitigation_mode     = "defensive"

  lifecycle {
    precondition {
      condition     = element(split(":", var.certificate_arn), 3) == local.region
      error_message = "certificate_arn: the certificate is of ${element(split(":", var.certificate_arn), 3)}, the fleet of ${local.region}; a load balancer takes certificates of its own region only."
    }
  }
}

resource "aws_lb_target_group" "edge" {
  # checkov:skip=CKV_AWS_378:TLS ends at the load balancer; behind it are private subnets, and the security group admits the balancer alone
  name                          = "${var.name}-edge"
  vpc_id                        = var.vpc_id
  target_type                   = "ip"
  protocol                      = "HTTP"
  port                          = local.port
  deregistration_delay          = 45
  load_balancing_algorithm_type = "least_outstanding_requests"

  health_check {
    path                = "/v2/health/ready"
    matcher             = "200"
    interval            = 5
    timeout             = 4
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "https" {
  load_balancer_arn = aws_lb.edge.arn
  port              = 443
  protocol          = "HTTPS"
  ssl_policy        = "ELBSecurityPolicy-TLS13-1-2-2021-06"
  certificate_arn   = var.certificate_arn

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.edge.arn
  }
}

resource "aws_lb_listener" "redirect" {
  load_balancer_arn = aws_lb.edge.arn
  port              = 80
  protocol          = "HTTP"

  default_action {
    type = "redirect"

    redirect {
      port        = "443"
      protocol    = "HTTPS"
      status_code = "HTTP_301"
    }
  }
}

# /admin/ for some networks; for all others it goes where every other path goes, which knows none.
resource "aws_lb_target_group" "admin" {
  # checkov:skip=CKV_AWS_378:as for the edges' target group
  count = local.admin ? 1 : 0

  name                 = "${var.name}-admin"
  vpc_id               = var.vpc_id
  target_type          = "ip"
  protocol             = "HTTP"
  port                 = local.admin_port
  deregistration_delay = 45

  health_check {
    path    = "/readyz"
    matcher = "200"
  }
}

resource "aws_lb_listener_rule" "admin" {
  count = local.admin ? 1 : 0

  listener_arn = aws_lb_listener.https.arn
  priority     = 10

  action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.admin[0].arn
  }

  condition {
    path_pattern {
      values = ["/admin/*"]
    }
  }

  condition {
    source_ip {
      values = var.admin_cidrs
    }
  }
}
