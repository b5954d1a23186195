"""Functional core: what runs when. `router.step` and `iteration.compose`/`apply` over plain state; no clock, no I/O, no threads.

It knows laws (`core.law`) and promises (`core.slo`), never a model, a socket or a kernel.
"""
