# What is seen from outside the fleet, also while all of it is down. What only the fleet itself can
# tell (wakes, queues, verdicts, spend by endpoint) are rules of Prometheus, in infra/monitoring.

locals {
  balancer = { LoadBalancer = var.load_balancer.arn_suffix }
  target   = { LoadBalancer = var.load_balancer.arn_suffix, TargetGroup = var.load_balancer.target_group_arn_suffix }
  to       = [aws_sns_topic.alarms.arn]
}

resource "aws_cloudwatch_metric_alarm" "errors" {
  alarm_name          = "${var.name}-errors"
  alarm_description   = "More than ${var.limits.errors_percent} % of the answers were 5xx in two of three periods of 5 minutes. tidepool status says which workers live; the edge's log group says why."
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.limits.errors_percent
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  metric_query {
    id    = "percent"
    label = "answers with 5xx, percent"
    # RequestCount leaves out what found no edge at all.
    expression  = "IF(FILL(requests, 0) + FILL(balancers, 0) > 0, 100 * (FILL(theirs, 0) + FILL(balancers, 0)) / (FILL(requests, 0) + FILL(balancers, 0)), 0)"
    return_data = true
  }
  dynamic "metric_query" {
    for_each = { requests = "RequestCount", theirs = "HTTPCode_Target_5XX_Count", balancers = "HTTPCode_ELB_5XX_Count" }

    content {
      id = metric_query.key

      metric {
        namespace   = "AWS/ApplicationELB"
        metric_name = metric_query.value
        dimensions  = local.balancer
        period      = 300
        stat        = "Sum"
      }
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "latency" {
  alarm_name          = "${var.name}-latency"
  alarm_description   = "The slowest 1 % of answers took longer than ${var.limits.latency_p99_s} s in three periods of 5 minutes. tidepool status --why NAME says what an endpoint waits for."
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.limits.latency_p99_s
  evaluation_periods  = 3
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  namespace          = "AWS/ApplicationELB"
  metric_name        = "TargetResponseTime"
  dimensions         = local.balancer
  period             = 300
  extended_statistic = "p99"
  # A handful of calls has no slowest hundredth.
  evaluate_low_sample_count_percentiles = "ignore"
}

resource "aws_cloudwatch_metric_alarm" "no_edge" {
  alarm_name          = "${var.name}-no-edge"
  alarm_description   = "No edge is healthy: every request gets a 503 of the load balancer. Look at the edge service's events in ECS and at its log group."
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  evaluation_periods  = 3
  treat_missing_data  = "breaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  namespace   = "AWS/ApplicationELB"
  metric_name = "HealthyHostCount"
  dimensions  = local.target
  period      = 60
  statistic   = "Maximum"
}

# Each running task reports its CPU once a minute, so the number of samples is the number of tasks;
# Container Insights would tell the same for money.
resource "aws_cloudwatch_metric_alarm" "no_task" {
  for_each = { for tier in ["controller", "fallback"] : tier => var.services[tier] if var.services[tier] != null }

  alarm_name          = "${var.name}-no-${each.key}"
  alarm_description   = each.key == "controller" ? "No controller has run for 5 minutes: calls go on, but nothing is placed, woken on a new instance or rolled out." : "No fallback worker has run for 5 minutes: endpoints with scale.fallback wait for a GPU instance again."
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  evaluation_periods  = 5
  treat_missing_data  = "breaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  namespace   = "AWS/ECS"
  metric_name = "CPUUtilization"
  dimensions  = { ClusterName = var.cluster_name, ServiceName = each.value }
  period      = 60
  statistic   = "SampleCount"
}

resource "aws_cloudwatch_metric_alarm" "edge_cpu" {
  alarm_name          = "${var.name}-edge-cpu"
  alarm_description   = "The edges have used more than 85 % of their CPU for 15 minutes, so their autoscaling is at its end or too slow. Raise the largest number of edge tasks."
  comparison_operator = "GreaterThanThreshold"
  threshold           = 85
  evaluation_periods  = 3
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  namespace   = "AWS/ECS"
  metric_name = "CPUUtilization"
  dimensions  = { ClusterName = var.cluster_name, ServiceName = var.services.edge }
  period      = 300
  statistic   = "Average"
}

resource "aws_cloudwatch_metric_alarm" "queue" {
  alarm_name          = "${var.name}-notifications"
  alarm_description   = "A notification of the registry has waited for 15 minutes: the controller does not read its queue. Changes of documents still arrive by its slow look at the bucket."
  comparison_operator = "GreaterThanThreshold"
  threshold           = 900
  evaluation_periods  = 2
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  namespace   = "AWS/SQS"
  metric_name = "ApproximateAgeOfOldestMessage"
  dimensions  = { QueueName = var.queue_name }
  period      = 300
  statistic   = "Maximum"
}

resource "aws_cloudwatch_metric_alarm" "instances_late" {
  for_each = var.pools

  alarm_name          = "${var.name}-${each.key}-instances-late"
  alarm_description   = "Pool ${each.key} has asked for an instance for ${var.limits.instances_late_m} minutes and did not get it: no capacity, a quota, or a spot price. The auto scaling group's activity says which."
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = var.limits.instances_late_m
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  metric_query {
    id          = "missing"
    label       = "instances asked for and not there"
    expression  = "FILL(asked, 0) - FILL(there, 0)"
    return_data = true
  }
  dynamic "metric_query" {
    for_each = { asked = "GroupDesiredCapacity", there = "GroupInServiceInstances" }

    content {
      id = metric_query.key

      metric {
        namespace   = "AWS/AutoScaling"
        metric_name = metric_query.value
        dimensions  = { AutoScalingGroupName = each.value.autoscaling_group_name }
        period      = 60
        stat        = "Maximum"
      }
    }
  }
}

# Money: the fleet's own reconcile pass ends such instances; this one sees that it does.
resource "aws_cloudwatch_metric_alarm" "unused" {
  for_each = var.pools

  alarm_name          = "${var.name}-${each.key}-unused"
  alarm_description   = "Pool ${each.key} has held more than ${each.value.instances_min} instances for ${var.limits.unused_h} hours in which nobody called. tidepool status --why NAME says what keeps its endpoints awake."
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.instances_min
  evaluation_periods  = var.limits.unused_h
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.to
  ok_actions          = local.to

  metric_query {
    id          = "unused"
    label       = "instances while nobody calls"
    expression  = "IF(FILL(requests, 0) > 0, 0, FILL(instances, 0))"
    return_data = true
  }
  metric_query {
    id = "requests"

    metric {
      namespace   = "AWS/ApplicationELB"
      metric_name = "RequestCount"
      dimensions  = local.balancer
      period      = 3600
      stat        = "Sum"
    }
  }
  metric_query {
    id = "instances"

    metric {
      namespace   = "AWS/AutoScaling"
      metric_name = "GroupInServiceInstances"
      dimensions  = { AutoScalingGroupName = each.value.autoscaling_group_name }
      period      = 3600
      stat        = "Minimum"
    }
  }
}
