# Roles apart: what a worker does itself, how ECS starts it, and what its instance does.

locals {
  by = {
    for service in ["ecs-tasks", "ec2"] : service => jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect    = "Allow"
        Principal = { Service = "${service}.amazonaws.com" }
        Action    = "sts:AssumeRole"
      }]
    })
  }

  ecs = "arn:${local.partition}:ecs:${local.region}:${local.account_id}"

  repositories = [
    for found in regexall("^(?P<account>[0-9]{12})\\.dkr\\.ecr\\.(?P<region>[a-z0-9-]+)\\.amazonaws\\.com(?:\\.cn)?/(?P<name>[^:@]+)", var.image) :
    "arn:${local.partition}:ecr:${found.region}:${found.account}:repository/${found.name}"
  ]

  execution_statements = concat(
    [{
      Sid      = "Logs"
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = ["arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:${var.log_group_name}:*"]
    }],
    length(local.repositories) == 0 ? [] : [
      { Sid = "Images", Effect = "Allow", Action = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], Resource = local.repositories },
      # Of the whole registry of the account: AWS has no smaller resource for it.
      { Sid = "ImagesLogin", Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
    ],
  )

  instance_statements = [
    {
      Sid    = "Cluster"
      Effect = "Allow"
      Action = [
        "ecs:DeregisterContainerInstance", "ecs:RegisterContainerInstance", "ecs:SubmitAttachmentStateChanges",
        "ecs:SubmitContainerStateChange", "ecs:SubmitTaskStateChange",
      ]
      Resource = [var.edge.cluster_arn]
    },
    {
      # The last of them is how the agent lets go of its tasks at a spot notice.
      Sid       = "Itself"
      Effect    = "Allow"
      Action    = ["ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState"]
      Resource  = ["${local.ecs}:container-instance/${var.edge.cluster_name}/*"]
      Condition = { ArnEquals = { "ecs:cluster" = var.edge.cluster_arn } }
    },
    # AWS has no smaller resource for it: it asks where the agent is to connect.
    { Sid = "Endpoint", Effect = "Allow", Action = ["ecs:DiscoverPollEndpoint"], Resource = ["*"] },
  ]

  # What the controller may start and end of this pool.
  launch_statements = [
    {
      Sid       = "Run"
      Effect    = "Allow"
      Action    = ["ecs:RunTask"]
      Resource  = ["${local.ecs}:task-definition/${local.full_name}:*"]
      Condition = { ArnEquals = { "ecs:cluster" = var.edge.cluster_arn } }
    },
    {
      Sid       = "Roles"
      Effect    = "Allow"
      Action    = ["iam:PassRole"]
      Resource  = [aws_iam_role.worker.arn, aws_iam_role.execution.arn]
      Condition = { StringEquals = { "iam:PassedToService" = "ecs-tasks.amazonaws.com" } }
    },
    {
      Sid      = "Instances"
      Effect   = "Allow"
      Action   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
      Resource = [aws_autoscaling_group.pool.arn]
    },
  ]
}

resource "aws_iam_role" "worker" {
  name               = "${local.full_name}-worker"
  description        = "What workers of the pool ${var.name} do themselves"
  assume_role_policy = local.by["ecs-tasks"]
}

resource "aws_iam_role_policy_attachment" "registry" {
  role       = aws_iam_role.worker.name
  policy_arn = var.worker.builds ? var.registry.policy_arns.builder : var.registry.policy_arns.worker
}

resource "aws_iam_role" "execution" {
  name               = "${local.full_name}-start"
  description        = "By which ECS starts workers of the pool ${var.name}: image, logs and the fleet's secret"
  assume_role_policy = local.by["ecs-tasks"]
}

resource "aws_iam_role_policy_attachment" "secret" {
  role       = aws_iam_role.execution.name
  policy_arn = var.registry.policy_arns.fleet_secret
}

resource "aws_iam_role_policy" "execution" {
  name   = "start"
  role   = aws_iam_role.execution.id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.execution_statements })
}

resource "aws_iam_role" "instance" {
  name               = "${local.full_name}-instance"
  description        = "What instances of the pool ${var.name} do: join the cluster"
  assume_role_policy = local.by["ec2"]
}

resource "aws_iam_role_policy" "instance" {
  name   = "join"
  role   = aws_iam_role.instance.id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.instance_statements })
}

resource "aws_iam_instance_profile" "instance" {
  name = "${local.full_name}-instance"
  role = aws_iam_role.instance.name
}

resource "aws_iam_role_policy" "launch" {
  name   = "launch-${var.name}"
  role   = var.edge.controller_role_name
  policy = jsonencode({ Version = "2012-10-17", Statement = local.launch_statements })
}
