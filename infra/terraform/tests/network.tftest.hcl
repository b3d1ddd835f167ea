mock_provider "aws" {
  source          = "./mocks"
  override_during = plan
}

variables {
  name               = "prod"
  availability_zones = ["us-east-1a", "us-east-1b", "us-east-1c"]
}

run "private_subnets_have_no_public_address_and_one_way_out" {
  command = plan

  module {
    source = "../modules/network"
  }

  assert {
    condition     = !anytrue([for subnet in concat(values(aws_subnet.private), values(aws_subnet.public)) : subnet.map_public_ip_on_launch])
    error_message = "no subnet gives out public addresses"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && toset(keys(aws_route.nat)) == toset(var.availability_zones)
    error_message = "one NAT gateway for the private subnets of all zones"
  }

  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && aws_vpc_endpoint.s3.service_name == "com.amazonaws.us-east-1.s3"
    error_message = "S3 by its gateway endpoint"
  }

  assert {
    condition     = [for zone in var.availability_zones : aws_subnet.private[zone].cidr_block] == ["10.40.0.0/19", "10.40.32.0/19", "10.40.64.0/19"] && [for zone in var.availability_zones : aws_subnet.public[zone].cidr_block] == ["10.40.192.0/22", "10.40.196.0/22", "10.40.200.0/22"]
    error_message = "three quarters of the addresses are private, one is public"
  }
}

run "one_more_zone_moves_no_subnet" {
  command = plan

  module {
    source = "../modules/network"
  }

  variables {
    availability_zones = ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"]
    nat                = "per_zone"
  }

  assert {
    condition     = aws_subnet.private["us-east-1c"].cidr_block == "10.40.64.0/19" && aws_subnet.public["us-east-1c"].cidr_block == "10.40.200.0/22"
    error_message = "a zone's addresses follow from its place"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 4
    error_message = "a NAT gateway in each zone"
  }
}

run "without_nat_everything_is_reached_by_endpoints" {
  command = plan

  module {
    source = "../modules/network"
  }

  variables {
    nat                 = "none"
    interface_endpoints = ["autoscaling", "ec2", "ecr.api", "ecr.dkr", "ecs", "ecs-agent", "ecs-telemetry", "logs", "secretsmanager", "sqs"]
  }

  assert {
    condition     = length(aws_nat_gateway.this) + length(aws_eip.nat) + length(aws_route.nat) == 0 && length(aws_vpc_endpoint.interface) == 10
    error_message = "no way to the internet, ten to AWS"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.endpoints[0].cidr_ipv4 == "10.40.0.0/16" && aws_vpc_security_group_ingress_rule.endpoints[0].to_port == 443
    error_message = "only from inside, only by TLS"
  }
}

run "refuses_a_network_without_a_way_to_aws" {
  command = plan

  module {
    source = "../modules/network"
  }

  variables {
    nat                 = "none"
    interface_endpoints = ["ecr.api", "ecr.dkr"]
  }

  expect_failures = [var.interface_endpoints]
}

run "refuses_zones_of_two_regions" {
  command = plan

  module {
    source = "../modules/network"
  }

  variables {
    availability_zones = ["us-east-1a", "us-east-2a"]
  }

  expect_failures = [var.availability_zones]
}

run "refuses_addresses_that_are_too_few" {
  command = plan

  module {
    source = "../modules/network"
  }

  variables {
    cidr = "10.40.0.0/24"
  }

  expect_failures = [var.cidr]
}
