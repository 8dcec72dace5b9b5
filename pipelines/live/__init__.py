"""Forecasts every few minutes: observations in, champions updated without a refit, intervals kept honest, forecasts out."""
