"""Weights in and out: conversion, downloads, 8-bit storage."""
