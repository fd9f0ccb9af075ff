"""Tests of mdp_fx.latency."""
