output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.registry.id
}

output "bucket_arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.registry.arn
}

output "url" {
  description = "What every command takes as --registry."
  value       = "s3://${aws_s3_bucket.registry.id}"
}

output "queue_name" {
  description = "Name of the queue of changes."
  value       = aws_sqs_queue.changes.name
}

output "queue_url" {
  description = "What the controller takes as --notifications."
  value       = aws_sqs_queue.changes.url
}

output "queue_arn" {
  description = "ARN of the queue of changes."
  value       = aws_sqs_queue.changes.arn
}

output "fleet_secret_arn" {
  description = "Secret that every task gets as TIDEPOOL_FLEET_SECRET; its value is in no state."
  value       = aws_secretsmanager_secret.fleet.arn
}

output "policy_arns" {
  description = "Policies for the roles of tasks: edge (finds the controller), edge_admin (changes documents), controller, worker, builder (a worker that also writes engines), and fleet_secret for what starts tasks."
  value = {
    edge         = aws_iam_policy.tier["edge"].arn
    edge_admin   = aws_iam_policy.tier["edge_admin"].arn
    controller   = aws_iam_policy.tier["controller"].arn
    worker       = aws_iam_policy.tier["worker"].arn
    builder      = aws_iam_policy.tier["builder"].arn
    fleet_secret = aws_iam_policy.tier["fleet_secret"].arn
  }
}
