# What each tier may do. Every tier may list: without it a missing object is answered with 403, as
# if it were forbidden, and keys of objects are no secrets. In no policy is an action or a whole
# resource a star.

locals {
  may_read = {
    edge       = ["control/leader.json"]
    edge_admin = ["audit/*", "builds/*", "endpoints/*", "engines/*.json", "keys.json", "models/*"]
    controller = ["audit/*", "builds/*", "control/*", "endpoints/*", "keys.json", "models/*/manifest.json"]
    worker     = ["blobs/*", "control/leader.json", "engines/*", "models/*"]
  }

  may_write = {
    edge       = []
    edge_admin = ["audit/*", "builds/*", "endpoints/*", "keys.json"]
    controller = ["audit/*", "control/*", "endpoints/*/state.json", "endpoints/*@state"]
    worker     = ["engines/*/used.json"] # the day on which an engine was last loaded
  }

  may_delete = {
    edge       = []
    edge_admin = ["builds/*"]
    controller = []
    worker     = []
  }

  read_statements = {
    for tier, keys in local.may_read : tier => [
      { Sid = "List", Effect = "Allow", Action = ["s3:ListBucket"], Resource = [local.bucket_arn] },
      { Sid = "Read", Effect = "Allow", Action = ["s3:GetObject"], Resource = [for key in keys : "${local.bucket_arn}/${key}"] },
    ]
  }

  write_statements = {
    for tier, keys in local.may_write : tier => [
      for sid, change in {
        Write  = { action = "s3:PutObject", keys = keys }
        Delete = { action = "s3:DeleteObject", keys = local.may_delete[tier] }
        } : {
        Sid = sid, Effect = "Allow", Action = [change.action], Resource = [for key in change.keys : "${local.bucket_arn}/${key}"]
      } if length(change.keys) > 0
    ]
  }

  key_statements = [
    for arn in local.key_arns :
    { Sid = "Key", Effect = "Allow", Action = ["kms:Decrypt", "kms:GenerateDataKey"], Resource = [arn] }
  ]

  own_statements = {
    edge       = []
    edge_admin = []
    controller = [{
      Sid = "Changes", Effect = "Allow", Action = ["sqs:ReceiveMessage", "sqs:DeleteMessage"], Resource = [aws_sqs_queue.changes.arn]
    }]
    worker = []
  }

  tier_statements = {
    for tier in keys(local.may_read) : tier => concat(
      local.read_statements[tier], local.write_statements[tier], local.own_statements[tier], local.key_statements
    )
  }

  policies = merge(local.tier_statements, {
    builder = concat(local.tier_statements.worker, [
      # An upload in parts that fails is ended, or its parts are paid for for ever.
      { Sid = "Engines", Effect = "Allow", Action = ["s3:PutObject", "s3:AbortMultipartUpload"], Resource = ["${local.bucket_arn}/engines/*"] },
    ])
    fleet_secret = concat([
      { Sid = "FleetSecret", Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = [aws_secretsmanager_secret.fleet.arn] },
    ], [for arn in local.key_arns : { Sid = "Key", Effect = "Allow", Action = ["kms:Decrypt"], Resource = [arn] }])
  })
}

resource "aws_iam_policy" "tier" {
  for_each = local.policies

  name        = "${var.name}-registry-${replace(each.key, "_", "-")}"
  description = "What ${each.key} may do with the registry of ${var.name}"
  policy      = jsonencode({ Version = "2012-10-17", Statement = each.value })
}
