# The name that callers dial, and its certificate, which AWS renews as long as the record stands.

locals {
  url_host = "${var.host}.${var.domain}"
}

data "aws_route53_zone" "domain" {
  name = var.domain
}

resource "aws_acm_certificate" "domain" {
  domain_name       = local.url_host
  validation_method = "DNS"

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_route53_record" "proof" {
  for_each = { for option in aws_acm_certificate.domain.domain_validation_options : option.domain_name => option }

  zone_id         = data.aws_route53_zone.domain.zone_id
  name            = each.value.resource_record_name
  type            = each.value.resource_record_type
  records         = [each.value.resource_record_value]
  ttl             = 300
  allow_overwrite = true # the same proof serves every certificate of this name
}

resource "aws_acm_certificate_validation" "domain" {
  certificate_arn         = aws_acm_certificate.domain.arn
  validation_record_fqdns = [for record in aws_route53_record.proof : record.fqdn]
}

resource "aws_route53_record" "edge" {
  zone_id = data.aws_route53_zone.domain.zone_id
  name    = local.url_host
  type    = "A"

  alias {
    name                   = module.edge.load_balancer_dns_name
    zone_id                = module.edge.load_balancer_zone_id
    evaluate_target_health = false
  }
}
