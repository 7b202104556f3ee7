"""Finetuning: trained models for other tasks. Begin with classifier.py."""
