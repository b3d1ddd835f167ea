mock_provider "aws" {
  source          = "./mocks"
  override_during = plan
}

variables {
  region          = "us-east-1"
  certificate_arn = "arn:aws:acm:us-east-1:123456789012:certificate/01234567-89ab-cdef-0123-456789abcdef"
  images = {
    edge = "123456789012.dkr.ecr.us-east-1.amazonaws.com/tidepool-edge:0.1.0"
    pool = "123456789012.dkr.ecr.us-east-1.amazonaws.com/tidepool-pool:0.1.0"
  }
}

override_resource {
  target          = module.network.aws_subnet.private["us-east-1b"]
  override_during = plan
  values          = { id = "subnet-0123456789abcdefb" }
}

override_resource {
  target          = module.network.aws_subnet.private["us-east-1c"]
  override_during = plan
  values          = { id = "subnet-0123456789abcdefc" }
}

run "three_variables_are_enough" {
  command = plan

  module {
    source = "../examples/minimal"
  }

  assert {
    condition     = output.zones == tolist(["us-east-1b", "us-east-1c"])
    error_message = "zones with the GPU come first, but none that is local"
  }

  assert {
    condition     = output.pools[0].instances_min == 0 && output.pools[0].instances_max == 2 && length(output.pools[0].subnets) == 2
    error_message = "one pool that reaches none"
  }
}

run "refuses_zones_without_the_type" {
  command = plan

  module {
    source = "../examples/minimal"
  }

  variables {
    zones = ["us-east-1e", "us-east-1f"]
  }

  expect_failures = [data.aws_ec2_instance_type_offerings.gpu]
}

run "refuses_a_region_that_is_none" {
  command = plan

  module {
    source = "../examples/minimal"
  }

  variables {
    region = "us-east-9"
  }

  expect_failures = [var.region]
}

run "refuses_a_type_that_the_region_has_not" {
  command = plan

  module {
    source = "../examples/minimal"
  }

  override_data {
    target          = data.aws_ec2_instance_type_offerings.gpu
    override_during = plan
    values          = { locations = [], instance_types = [] }
  }

  variables {
    instance_type = "g7e.2xlarge"
  }

  expect_failures = [data.aws_ec2_instance_type_offerings.gpu]
}
