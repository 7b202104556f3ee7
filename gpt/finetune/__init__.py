"""Finetuning: trained models for other texts and tasks."""
