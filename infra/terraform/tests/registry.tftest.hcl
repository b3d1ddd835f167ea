mock_provider "aws" {
  source          = "./mocks"
  override_during = plan
}

variables {
  name = "prod"
}

run "closed_and_least_privilege" {
  command = plan

  module {
    source = "../modules/registry"
  }

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.registry.block_public_acls,
      aws_s3_bucket_public_access_block.registry.block_public_policy,
      aws_s3_bucket_public_access_block.registry.ignore_public_acls,
      aws_s3_bucket_public_access_block.registry.restrict_public_buckets,
    ])
    error_message = "public access is blocked in all four ways"
  }

  assert {
    condition     = aws_s3_bucket_versioning.registry.versioning_configuration[0].status == "Enabled"
    error_message = "what is overwritten can be brought back"
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.registry.rule).apply_server_side_encryption_by_default[0].sse_algorithm == "AES256"
    error_message = "objects are encrypted without a key of one's own"
  }

  assert {
    condition = jsondecode(aws_s3_bucket_policy.registry.policy).Statement[0] == {
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = ["arn:aws:s3:::prod-registry-123456789012", "arn:aws:s3:::prod-registry-123456789012/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }
    error_message = "whoever comes without TLS is refused everything"
  }

  assert {
    condition     = !aws_s3_bucket.registry.force_destroy
    error_message = "a bucket with models is not deleted by accident"
  }

  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.registry.rule : rule.filter[0].prefix] == ["control/"]
    error_message = "no rule reaches engines/, models/ or blobs/"
  }

  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_lifecycle_configuration.registry.rule :
      length(rule.expiration) == 0 && length(rule.transition) == 0
    ])
    error_message = "what is current never expires"
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_sqs_queue_policy.changes.policy).Statement :
      statement.Action == "sqs:SendMessage" && statement.Condition.ArnEquals["aws:SourceArn"] == "arn:aws:s3:::prod-registry-123456789012"
    ])
    error_message = "only the bucket sends"
  }

  assert {
    condition     = [for tier, statements in local.policies : tier if strcontains(jsonencode(statements), "sqs:")] == ["controller"]
    error_message = "only the controller receives"
  }

  assert {
    condition     = toset([for queue in aws_s3_bucket_notification.changes.queue : queue.filter_prefix]) == toset(["builds/", "endpoints/", "keys.json", "models/"])
    error_message = "the controller hears of every document that it follows"
  }

  assert {
    condition = length(flatten([
      for statements in values(local.policies) : [
        for statement in statements : statement
        if anytrue([for action in statement.Action : strcontains(action, "*")]) || contains(statement.Resource, "*")
      ]
    ])) == 0
    error_message = "no policy has a star for an action or for a whole resource"
  }

  assert {
    condition     = toset([for tier, statements in local.policies : tier if strcontains(jsonencode(statements), "/keys.json")]) == toset(["controller", "edge_admin"])
    error_message = "keys.json is read by the controller, and by edges that change keys"
  }

  assert {
    condition = toset(flatten([
      for tier, statements in local.policies : [
        for statement in statements : "${tier} ${join(" ", statement.Resource)}"
        if contains(statement.Action, "s3:PutObject") && strcontains(jsonencode(statement.Resource), "/engines/")
      ]
      ])) == toset([
      "builder arn:aws:s3:::prod-registry-123456789012/engines/*",
      "builder arn:aws:s3:::prod-registry-123456789012/engines/*/used.json",
      "worker arn:aws:s3:::prod-registry-123456789012/engines/*/used.json",
    ])
    error_message = "only the builder writes engines; a worker notes the day of an engine's last use"
  }

  assert {
    condition     = [for tier, statements in local.policies : tier if strcontains(jsonencode(statements), "s3:DeleteObject")] == ["edge_admin"]
    error_message = "only wishes are deleted, by who may change them"
  }

  assert {
    condition     = jsondecode(aws_iam_policy.tier["edge"].policy).Statement[1].Resource == ["arn:aws:s3:::prod-registry-123456789012/control/leader.json"]
    error_message = "an edge that changes no documents reads the leader record alone"
  }

  assert {
    condition     = alltrue([for tier, policy in aws_iam_policy.tier : jsondecode(policy.policy).Statement == jsondecode(jsonencode(local.policies[tier]))])
    error_message = "the policies are those that were looked at"
  }

  # By which processes of ours do their work in tests/infra/test_terraform_policies.py.
  assert {
    condition     = jsondecode(jsonencode(local.policies)) == jsondecode(file("policies.json"))
    error_message = "and those that a server went by"
  }
}

run "own_key" {
  command = plan

  module {
    source = "../modules/registry"
  }

  variables {
    kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/01234567-89ab-cdef-0123-456789abcdef"
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.registry.rule).apply_server_side_encryption_by_default[0].kms_master_key_id == var.kms_key_arn
    error_message = "the key encrypts objects"
  }

  assert {
    condition     = aws_sqs_queue.changes.kms_master_key_id == var.kms_key_arn && aws_secretsmanager_secret.fleet.kms_key_id == var.kms_key_arn
    error_message = "and messages and the secret"
  }

  assert {
    condition     = alltrue([for statements in values(local.policies) : length([for one in statements : one if one.Sid == "Key" && one.Resource == [var.kms_key_arn]]) == 1])
    error_message = "every tier may use that key and no other"
  }
}

run "refuses_names_and_keys" {
  command = plan

  module {
    source = "../modules/registry"
  }

  variables {
    name                 = "Prod"
    bucket_name          = "models.example.com"
    kms_key_arn          = "alias/registry"
    secret_recovery_days = 3
    replaced_days        = 0
  }

  expect_failures = [var.name, var.bucket_name, var.kms_key_arn, var.secret_recovery_days, var.replaced_days]
}
