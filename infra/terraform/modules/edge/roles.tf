# A role for each tier's own calls, and one by which ECS starts them all.

locals {
  registry_policies = merge(
    { for tier in local.tiers : "${tier} itself" => {
      role   = tier
      policy = var.registry.policy_arns[tier == "fallback" ? "worker" : tier]
    } },
    local.admin ? { "edge admin" = { role = "edge", policy = var.registry.policy_arns.edge_admin } } : {},
  )

  # An image in an ECR is named in the policy; others are public.
  repositories = [
    for found in regexall("^(?P<account>[0-9]{12})\\.dkr\\.ecr\\.(?P<region>[a-z0-9-]+)\\.amazonaws\\.com(?:\\.cn)?/(?P<name>[^:@]+)", var.image) :
    "arn:${local.partition}:ecr:${found.region}:${found.account}:repository/${found.name}"
  ]

  execution_statements = concat(
    [{
      Sid    = "Logs"
      Effect = "Allow"
      Action = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = [
        for name in distinct(values(local.log_group_names)) :
        "arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:${name}:*"
      ]
    }],
    length(local.repositories) == 0 ? [] : [
      { Sid = "Images", Effect = "Allow", Action = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], Resource = local.repositories },
      # Of the whole registry of the account: AWS has no smaller resource for it.
      { Sid = "ImagesLogin", Effect = "Allow", Action = ["ecr:GetAuthorizationToken"], Resource = ["*"] },
    ],
  )

  by_tasks = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
    }]
  })
}

resource "aws_iam_role" "task" {
  for_each = local.tiers

  name               = "${var.name}-${each.key}"
  description        = "What the ${each.key} of ${var.name} does itself"
  assume_role_policy = local.by_tasks
}

resource "aws_iam_role_policy_attachment" "registry" {
  for_each = local.registry_policies

  role       = aws_iam_role.task[each.value.role].name
  policy_arn = each.value.policy
}

resource "aws_iam_role" "execution" {
  name               = "${var.name}-start"
  description        = "By which ECS starts tasks of ${var.name}: image, logs and the fleet's secret"
  assume_role_policy = local.by_tasks
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

# What the controller does in the cluster for every pool; each pool adds its own group, task and
# roles.
locals {
  cluster_arn = aws_ecs_cluster.fleet.arn
  task_arns   = "arn:${local.partition}:ecs:${local.region}:${local.account_id}:task/${var.name}/*"
  of_cluster  = { ArnEquals = { "ecs:cluster" = local.cluster_arn } }

  launch_statements = [
    { Sid = "Tasks", Effect = "Allow", Action = ["ecs:DescribeTasks", "ecs:StopTask"], Resource = [local.task_arns], Condition = local.of_cluster },
    { Sid = "TagNewTasks", Effect = "Allow", Action = ["ecs:TagResource"], Resource = [local.task_arns], Condition = { StringEquals = { "ecs:CreateAction" = "RunTask" } } },
    { Sid = "Instances", Effect = "Allow", Action = ["ecs:ListContainerInstances"], Resource = [local.cluster_arn] },
    {
      Sid       = "InstanceStates"
      Effect    = "Allow"
      Action    = ["ecs:DescribeContainerInstances"]
      Resource  = ["arn:${local.partition}:ecs:${local.region}:${local.account_id}:container-instance/${var.name}/*"]
      Condition = local.of_cluster
    },
    # AWS checks a list of tasks against the instances that it may run on, all of them here; the
    # condition holds it to the cluster.
    { Sid = "ListTasks", Effect = "Allow", Action = ["ecs:ListTasks"], Resource = ["*"], Condition = local.of_cluster },
    # AWS has no smaller resource for it; it only reads.
    { Sid = "DescribeGroups", Effect = "Allow", Action = ["autoscaling:DescribeAutoScalingGroups"], Resource = ["*"] },
    {
      Sid      = "TagInstances"
      Effect   = "Allow"
      Action   = ["ec2:CreateTags"]
      Resource = ["arn:${local.partition}:ec2:${local.region}:${local.account_id}:instance/*"]
      Condition = {
        StringEquals                = { "aws:ResourceTag/tidepool:fleet" = var.name }
        "ForAllValues:StringEquals" = { "aws:TagKeys" = ["tidepool:fleet", "tidepool:epoch"] }
      }
    },
  ]
}

resource "aws_iam_role_policy" "launch" {
  count = length(var.pools) > 0 ? 1 : 0

  name   = "launch"
  role   = aws_iam_role.task["controller"].id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.launch_statements })
}
