"""Finetuning: trained models for other texts and tasks. Begin with lora.py."""
