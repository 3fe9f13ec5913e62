"""Schedules: cron expressions and intervals that start workflows and call functions."""
